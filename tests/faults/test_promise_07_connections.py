"""Promise 7: connections that come and go leave nothing: no descriptor, no task, under 1 MiB of memory per 10,000."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import socket
from pathlib import Path

import anyio
import pytest

from tests.conftest import StartDaemon
from tests.faults.figures import figure, rounds
from tests.faults.measure import Held
from tests.support.daemon import Daemon, eventually
from vlmd_bridge.daemon.main import Lifetime
from vlmd_bridge.daemon.ready import ReadyChannel
from vlmd_bridge.daemon.settings import DaemonSettings

CYCLES = rounds(push=1_000, long=100_000)

# The first ones fill caches and free lists that every later one uses.
WARM_UP = 500

GROWTH_BYTES_PER_CYCLE = 1024 * 1024 / 10_000

# One page more or less says nothing: the allowance of a short run.
NOISE_BYTES = 256 * 1024

_PING = b'{"id":%d,"method":"ping"}\n'
_HELLO = b'{"id":1,"method":"hello","params":{"protocol":1}}\n'


def cycle(path: Path, number: int, rng: random.Random) -> None:
    """Connect and disconnect in one of the ways there are."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        match number % 5:
            case 0:
                pass  # gone before it was looked at
            case 1:
                connection.sendall(_PING % number)
                assert connection.recv(4096)
            case 2:
                connection.sendall(_HELLO + (_PING % number)[: rng.randrange(20)])
            case 3:
                connection.sendall(_PING % number)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            case _:
                connection.sendall(
                    b'{"id":1,"method":"describe_images","params":{"images":[{"imagePath":"/a.png"}]}}\n'
                )


def test_a_daemon_holds_what_it_held(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_ready()
    rng = random.Random(7)
    for number in range(WARM_UP):
        cycle(daemon.socket_path, number, rng)
    before = settled(daemon)
    for number in range(CYCLES):
        cycle(daemon.socket_path, number, rng)
    after = settled(daemon)
    grown = after.rss_bytes - before.rss_bytes
    figure(
        "7", cycles=CYCLES, fds=after.fds - before.fds, threads=after.threads - before.threads,
        rss_growth_kib=round(grown / 1024), rss_growth_kib_per_10_000=round(grown / 1024 * 10_000 / CYCLES),
    )  # fmt: skip
    assert (after.fds, after.threads) == (before.fds, before.threads)
    assert grown < CYCLES * GROWTH_BYTES_PER_CYCLE + NOISE_BYTES


def settled(daemon: Daemon) -> Held:
    """What the daemon holds once it has noticed that everyone is gone."""
    # The one that asks is the one connection.
    eventually(lambda: daemon.status()["connections"] == 1 and daemon.status()["queue"]["jobs"] == 0)
    seen = [Held.by(daemon.process.pid)]

    def unchanged() -> bool:
        seen.append(Held.by(daemon.process.pid))
        return len(seen) > 5 and len({(held.fds, held.threads) for held in seen[-5:]}) == 1

    eventually(unchanged, what="as many descriptors for a while")
    return seen[-1]


def test_no_task_is_left(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """The daemon in this process, whose tasks can be counted."""
    path = Path("/tmp") / f"vlmd-t7-{tmp_path_factory.getbasetemp().name[-8:]}-{id(tmp_path):x}.sock"
    settings = DaemonSettings(model="fake", socket_path=path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Lifetime(settings, ReadyChannel(None)) as lifetime:
            before, after = anyio.run(_tasks_before_and_after, lifetime, path)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    figure("7", task_cycles=_TASK_CYCLES, tasks=after - before)
    assert after == before


_TASK_CYCLES = 300


async def _tasks_before_and_after(lifetime: Lifetime, path: Path) -> tuple[int, int]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifetime.serve)
        with anyio.fail_after(30):
            while not await anyio.Path(path).exists():
                await anyio.sleep(0.01)
        before = await _settled_tasks()
        rng = random.Random(7)
        for number in range(_TASK_CYCLES):
            await anyio.to_thread.run_sync(cycle, path, number, rng)
        after = await _settled_tasks()
        lifetime.stop("the test is over")
    return before, after


async def _settled_tasks() -> int:
    """Return the number of tasks once it is the same twice, with time for the hang-up checks between."""
    counts = [-1, len(asyncio.all_tasks())]
    with anyio.fail_after(30):
        while counts[-1] != counts[-2]:
            await anyio.sleep(0.3)
            gc.collect()
            counts.append(len(asyncio.all_tasks()))
    return counts[-1]
