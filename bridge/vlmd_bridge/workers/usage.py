"""What a process uses, as the system tells it."""

from __future__ import annotations

import time

import psutil

# A reading costs some 0.1 ms, and a peer may ask for thousands of them.
_FRESH_S = 0.2

_memory: dict[int, tuple[float, int | None]] = {}


def memory_bytes(pid: int | None) -> int | None:
    """Return the resident memory of a process as of a moment ago, None for one that is not there."""
    if pid is None:
        return None
    now_s = time.monotonic()
    if (known := _memory.get(pid)) is not None and now_s - known[0] < _FRESH_S:
        return known[1]
    for other in [other for other, (read_s, _) in _memory.items() if now_s - read_s > _FRESH_S]:
        del _memory[other]
    try:
        rss_bytes = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
    _memory[pid] = (now_s, rss_bytes)
    return rss_bytes


def cpu_s(pid: int | None) -> float | None:
    """Return the processor time of a process so far, None for one that is not there."""
    try:
        if pid is None:
            return None
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return None
