"""What a frame costs, and who holds how much memory, as jobs grow."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from benchmark.daemon import Vlmd
from benchmark.frames import Frames

# The short job is repeated before and after the long ones, and the median counts: a machine has moods.
_SHORT_RUNS = 3

# Memory is read this often while a job runs.
_SAMPLE_S = 0.5


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One size of job.

    Attributes:
        frames: in one request.
        seconds_per_frame: wall time.
        cpu_s_per_frame: processor time of all processes.
        exact: records that are right, word for word.
        memory_mb: resident memory by process at its end.
        growth: the engine worker's memory in the last quarter of the run over that in the second.
    """

    frames: int
    seconds_per_frame: float
    cpu_s_per_frame: float
    exact: int
    memory_mb: dict[str, float]
    growth: float


def run_scale(vlmd: Vlmd, frames: Frames, sizes: Sequence[int], say: Callable[[str], None]) -> list[Size]:
    """Describe jobs of each of `sizes` frames, the smallest several times before and after the others."""
    short, *long = sorted(sizes)
    shorts = [_measure(vlmd, frames.first(short), say) for _ in range(_SHORT_RUNS)]
    longs = [_measure(vlmd, frames.first(size), say) for size in long]
    shorts += [_measure(vlmd, frames.first(short), say) for _ in range(_SHORT_RUNS)]
    return [_median(shorts), *longs]


def _measure(vlmd: Vlmd, frames: Frames, say: Callable[[str], None]) -> Size:
    ended = threading.Event()
    samples: list[float] = []

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append(vlmd.memory_mb()["engine"])

    before_s, start_s = vlmd.cpu_s(), time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = vlmd.describe(frames.paths)
    finally:
        ended.set()
        watcher.join()
    count = len(frames.paths)
    size = Size(
        frames=count,
        seconds_per_frame=(time.perf_counter() - start_s) / count,
        cpu_s_per_frame=(vlmd.cpu_s() - before_s) / count,
        exact=frames.exact(run.texts),
        memory_mb=vlmd.memory_mb(),
        growth=_growth(samples),
    )
    say(f"  {count} frames: {size.seconds_per_frame * 1000:.1f} ms a frame, {size.cpu_s_per_frame * 1000:.1f} ms CPU")
    return size


def _growth(samples: Sequence[float]) -> float:
    quarter = len(samples) // 4
    if quarter < 1:
        return 1.0
    return statistics.median(samples[-quarter:]) / statistics.median(samples[quarter : 2 * quarter])


def _median(sizes: Sequence[Size]) -> Size:
    return msgspec.structs.replace(
        sizes[-1],
        seconds_per_frame=statistics.median(size.seconds_per_frame for size in sizes),
        cpu_s_per_frame=statistics.median(size.cpu_s_per_frame for size in sizes),
    )
