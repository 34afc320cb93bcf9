"""How long small things take: a batch through an engine that answers at once, a ping and a first token beside a job."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from PIL import Image

from benchmark.contender import SCRIPTS
from benchmark.daemon import Lines, Vlmd, image_refs
from benchmark.figures import quantile
from benchmark.frames import Frames
from vlmd_bridge.images.decode import decode_picture
from vlmd_bridge.workers.messages import ImageSpec

# Frames of a batch, the protocol's default.
_BATCH = 4

_DISPATCHES = 300
_INSTANT_JOBS = 20
_INSTANT_BATCHES = 120
_PING_EVERY_S = 0.005
_MAX_SOURCE_PIXELS = 1_000_000

# What an interactive user asks.
_QUESTION = "Which app is this?"
_ANSWER_TOKENS = 8


class Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch of four frames costs besides decoding and inference; medians in ms.

    Attributes:
        batch_ms: of a job's batches, where pictures and engine answer at once: framing, dispatch and socket.
        round_trip_ms: of a request with one batch through a whole daemon with the fake engine, one token a frame.
        decode_ms: opening the four small pictures of that request in a process, a part of it.
    """

    batch_ms: float
    round_trip_ms: float
    decode_ms: float


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody at the keyboard notices of a batch job, in ms."""

    pings: int
    ping_median_ms: float
    ping_p99_ms: float
    first_token_idle_ms: list[float]
    first_token_loaded_ms: list[float]

    @property
    def first_token_ratio(self) -> float:
        """Medians, loaded over idle."""
        return statistics.median(self.first_token_loaded_ms) / statistics.median(self.first_token_idle_ms)


def run_dispatch(folder: Path) -> Dispatch:
    """Time batches through a daemon whose workers answer at once, and through a whole one with the fake engine."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(_BATCH):
        path = folder / f"small-{i}.png"
        Image.new("RGB", (64, 64), (i, 0, 0)).save(path)
        paths.append(str(path))
    daemon = Vlmd("fake", "fake:tokens=1,step_ms=0")
    try:
        daemon.ready()
        with Lines(daemon.socket) as lines:
            lines.frames(image_refs(paths))  # the first one waits for the load
            times = [_timed(lambda: lines.frames(image_refs(paths))) for _ in range(_DISPATCHES)]
    finally:
        daemon.close()
    spec = ImageSpec(factor=32, min_pixels=4096, max_pixels=262144, max_aspect_ratio=200.0)  # the fake's own

    def decode() -> None:
        for path in paths:
            decode_picture(Path(path).read_bytes(), spec, name=path, max_source_pixels=_MAX_SOURCE_PIXELS)

    decodes = [_timed(decode) for _ in range(_DISPATCHES)]
    return Dispatch(
        batch_ms=statistics.median(_instant_batches(paths[0])) * 1000,
        round_trip_ms=statistics.median(times) * 1000,
        decode_ms=statistics.median(decodes) * 1000,
    )


def _instant_batches(picture: str) -> list[float]:
    """Return the seconds of a batch in each of some jobs, where nothing but the daemon's own work takes time."""
    folder = Path(tempfile.mkdtemp(prefix="vlmd-b-", dir="/tmp"))  # a socket's path must be short
    # The process of the test of promise 10: the daemon's sockets, framing, sessions, jobs and scheduler.
    command = [sys.executable, "-m", "tests.faults.instant_engine", str(folder / "s.sock")]
    with subprocess.Popen(command, cwd=SCRIPTS.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it listens
        with Lines(str(folder / "s.sock")) as lines:
            refs = image_refs([picture] * _INSTANT_BATCHES * _BATCH)
            times = [
                _timed(lambda: lines.frames(refs, dedupe=False)) / _INSTANT_BATCHES for _ in range(_INSTANT_JOBS + 1)
            ]
        process.stdin.close()
    shutil.rmtree(folder)
    return times[1:]  # the first job pays for what is made once


def run_beside(vlmd: Vlmd, frames: Frames, questions: int, say: Callable[[str], None]) -> Beside:
    """Ask and ping with nothing to do, then while a job describes `frames` over and over."""
    with Lines(vlmd.socket) as lines:
        idle = list(_first_tokens(lines, frames.paths, questions))
        with _job(vlmd, frames.paths):
            loaded = list(_first_tokens(lines, frames.paths, questions))
            say(f"  first token: idle {_ms(idle)}, beside a job {_ms(loaded)}")
            with _pings(vlmd.socket) as pings:
                time.sleep(questions / 2)
    say(f"  {len(pings)} pings: p99 {quantile(pings, 0.99) * 1000:.2f} ms")
    return Beside(
        pings=len(pings),
        ping_median_ms=statistics.median(pings) * 1000,
        ping_p99_ms=quantile(pings, 0.99) * 1000,
        first_token_idle_ms=[seconds * 1000 for seconds in idle],
        first_token_loaded_ms=[seconds * 1000 for seconds in loaded],
    )


def run_fairness(vlmd: Vlmd, frames: Frames, clients: int) -> float:
    """Give `clients` connections the same job at once; return the least over the most frames when the first ends."""
    done = [0] * clients
    at_first_end: list[int] = []
    lock = threading.Lock()
    share = len(frames.paths) // clients

    def work(number: int) -> None:
        refs = image_refs(frames.paths[number * share : (number + 1) * share])
        with Lines(vlmd.socket) as lines:
            for line in lines.lines("describe_images", images=refs):
                with lock:
                    done[number] += len(line["results"])
                    if done[number] == share and not at_first_end:
                        at_first_end.extend(done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(at_first_end) / max(at_first_end)


def _first_tokens(lines: Lines, paths: Sequence[str], count: int) -> Iterator[float]:
    """Yield the time to the first token of `count` interactive questions about a picture each, seconds."""
    for i in range(count):
        content = [{"type": "text", "text": _QUESTION}, {"type": "image", "imagePath": paths[i % len(paths)]}]
        start_s = time.perf_counter()
        answer = lines.lines(
            "generate",
            messages=[{"role": "user", "content": content}],
            maxTokens=_ANSWER_TOKENS,
            stream=True,
            priority="interactive",
        )
        next(answer)
        yield time.perf_counter() - start_s
        for _ in answer:
            pass


@contextmanager
def _job(vlmd: Vlmd, paths: Sequence[str]) -> Iterator[None]:
    """Keep the engine full with batch work from a connection of its own."""
    ended = threading.Event()
    full = threading.Event()

    def work() -> None:
        with Lines(vlmd.socket) as lines:
            while not ended.is_set():
                for _ in lines.lines("describe_images", images=image_refs(paths)):
                    full.set()
                    if ended.is_set():
                        return

    thread = threading.Thread(target=work)
    thread.start()
    full.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _pings(path: str) -> Iterator[list[float]]:
    """Ping from a connection of its own until the end of the block; the times, seconds."""
    ended = threading.Event()
    times: list[float] = []

    def work() -> None:
        with Lines(path) as lines:
            while not ended.wait(_PING_EVERY_S):
                times.append(_timed(lambda: lines.ask("ping")))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def _timed(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms"
