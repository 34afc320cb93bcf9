"""What the promises measure of a process, and how times are summed up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a process holds at one moment."""

    fds: int
    threads: int
    rss_bytes: int

    @classmethod
    def by(cls, pid: int) -> Self:
        """Look at the process `pid`."""
        process = psutil.Process(pid)
        with process.oneshot():
            return cls(fds=process.num_fds(), threads=process.num_threads(), rss_bytes=int(process.memory_info().rss))


def cpu_s(pid: int) -> float:
    """Return the processor time that the process `pid` has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def median_ms(times_s: Sequence[float]) -> float:
    """Return the median, in milliseconds."""
    return round(1000 * statistics.median(times_s), 2)


def p99_ms(times_s: Sequence[float]) -> float:
    """Return the 99th percentile, in milliseconds."""
    return round(1000 * statistics.quantiles(times_s, n=100, method="inclusive")[-1], 2)
