"""What there is to compute with."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the cores that this process may use."""
    # sched_getaffinity sees what a container or taskset leaves us; macOS does not have it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the machine's memory, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
