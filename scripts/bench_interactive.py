"""Interactive work beside batch work: how long a request waits while a large job runs, and how fair clients share.

Requests of three kinds are asked of an idle daemon and of one that works on a large batch job, in turns. The wait is
until the first piece of text comes (a record comes whole, so there it is the whole answer). `ping` is asked meanwhile.
Then four clients describe equal jobs side by side. Exit status 1 when a target is missed.
Usage: python scripts/bench_interactive.py [--model demo] [--rounds 5] [--samples 8] [--frames 5000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio

import vlmd
from vlmd_bridge.demo.frames import iter_recording

# Time under load over time when idle, and the milliseconds within which 99 of 100 pings are answered.
TARGET_RATIO, AIM_RATIO = 2.5, 1.5
TARGET_PING_MS = 10.0

# Frames of each client that are done before their shares are compared: the start is not yet a stream.
_SETTLED_FRAMES = 32
_FAIR_CLIENTS = 4
_PING_EVERY_S = 0.02

Ask = Callable[[vlmd.AsyncClient], Awaitable[None]]


async def first_text(client: vlmd.AsyncClient, prompt: str, images: list[str]) -> None:
    """Wait for the first piece of an answer, then leave it."""
    async for _ in client.generate(prompt, images=images, max_tokens=24):
        return


async def one_record(client: vlmd.AsyncClient, path: str) -> None:
    """Wait for a frame's record."""
    await client.describe_all([path], priority="interactive")


def requests(paths: list[str]) -> dict[str, Ask]:
    """Return the kinds of request."""
    return {
        "generate, text": lambda client: first_text(client, "Which application is this?", []),
        "generate, picture": lambda client: first_text(client, "Which application is this?", paths[:1]),
        "describe_images, one frame": lambda client: one_record(client, paths[0]),
    }


async def sample(client: vlmd.AsyncClient, kinds: dict[str, Ask], count: int) -> dict[str, list[float]]:
    """Return the seconds of `count` requests of each kind, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(count):
        for name, ask in kinds.items():
            began = time.perf_counter()
            await ask(client)
            taken[name].append(time.perf_counter() - began)
    return taken


async def ping(client: vlmd.AsyncClient, taken: list[float]) -> None:
    """Ask until cancelled, appending seconds."""
    while True:
        began = time.perf_counter()
        await client.ping()
        taken.append(time.perf_counter() - began)
        await anyio.sleep(_PING_EVERY_S)


async def work(client: vlmd.AsyncClient, images: list[str], done: list[float], started: anyio.Event) -> None:
    """Describe `images` as a batch job, appending the time of each frame."""
    async for batch in client.describe(images):
        done.extend([time.perf_counter()] * len(batch.results))
        started.set()


async def compare(socket: str, paths: list[str], options: argparse.Namespace) -> bool:
    """Measure the three kinds idle and under load; return whether the targets are met."""
    kinds = requests(paths)
    images = [paths[i % len(paths)] for i in range(options.frames)]
    idle: dict[str, list[float]] = {name: [] for name in kinds}
    loaded: dict[str, list[float]] = {name: [] for name in kinds}
    pings: list[float] = []
    idle_pings: list[float] = []
    async with vlmd.AsyncClient(socket=socket) as client, vlmd.AsyncClient(socket=socket) as other:
        await sample(client, kinds, 2)
        for _ in range(options.rounds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ping, client, idle_pings)
                for name, values in (await sample(client, kinds, options.samples)).items():
                    idle[name] += values
                tasks.cancel_scope.cancel()
            started = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, other, images, [], started)
                await started.wait()
                tasks.start_soon(ping, client, pings)
                for name, values in (await sample(client, kinds, options.samples)).items():
                    loaded[name] += values
                tasks.cancel_scope.cancel()
    met = True
    print(f"{'':28s}  idle ms  under load ms  (90 %)   ratio   at least {TARGET_RATIO}, aim {AIM_RATIO}")
    for name in kinds:
        still, busy = (statistics.median(values[name]) * 1000 for values in (idle, loaded))
        tail = statistics.quantiles(loaded[name], n=10)[-1] * 1000
        ratio = busy / still
        met = met and ratio < TARGET_RATIO
        verdict = "MISSED" if ratio >= TARGET_RATIO else "met" if ratio >= AIM_RATIO else "aim met"
        print(f"{name:28s}  {still:7.1f}  {busy:13.1f}  {tail:6.1f}  {ratio:6.2f}   {verdict}")
    still_ms, busy_ms = (statistics.quantiles(values, n=100)[-1] * 1000 for values in (idle_pings, pings))
    print(f"99 % of pings within {busy_ms:.1f} ms under load (target {TARGET_PING_MS}), {still_ms:.1f} without the job")
    return met and busy_ms < TARGET_PING_MS


async def share(socket: str, paths: list[str], frames: int) -> None:
    """Print how evenly clients with equal jobs got on."""
    images = [paths[i % len(paths)] for i in range(frames)]
    done: list[list[float]] = [[] for _ in range(_FAIR_CLIENTS)]
    async with anyio.create_task_group() as tasks:
        for each in done:
            tasks.start_soon(partial(_client_works, socket, images, each))
    end = min(each[-1] for each in done)
    settled = max(each[_SETTLED_FRAMES - 1] for each in done)
    moments = sorted(moment for each in done for moment in each if settled <= moment <= end)
    counts = [[sum(when <= moment for when in each) for each in done] for moment in moments]
    worst = max(max(count) / min(count) for count in counts)
    print(
        f"{_FAIR_CLIENTS} clients, {frames} frames each: the first had at most {worst:.2f} times the frames of the last"
    )


async def _client_works(socket: str, images: list[str], done: list[float]) -> None:
    async with vlmd.AsyncClient(socket=socket) as client:
        await work(client, images, done, anyio.Event())


async def measure(options: argparse.Namespace, folder: str, paths: list[str]) -> bool:
    """Start a daemon and measure."""
    socket = str(Path(folder) / "s.sock")
    async with vlmd.AsyncClient(options.model, socket=socket) as first:
        await first.describe_all(paths[:1])
        met = await compare(socket, paths, options)
        await share(socket, paths, options.fair_frames)
        await first.shutdown()
    return met


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--frames", type=int, default=5000, help="of the batch job")
    parser.add_argument("--fair-frames", type=int, default=120, help="of each client whose shares are compared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8, help="of each kind and round")
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlmd-b-", dir="/tmp") as folder:
        paths = []
        for i, frame in enumerate(iter_recording(options.seed, 48)):
            paths.append(str(Path(folder) / f"{i:02d}.png"))
            frame.image.save(paths[-1])
        met = anyio.run(measure, options, folder, paths)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
