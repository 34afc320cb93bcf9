"""The arena: one mapped, already unlinked file in which pictures travel from image process to engine worker.

The daemon creates it and hands its descriptor to every worker at exec. Nothing has a name, so nothing is left behind
by a kill. The file is sparse: memory is used only by pages that were written, and ranges are given out lowest first,
so that the written pages stay few.
"""

from __future__ import annotations

import bisect
import mmap
import os
import tempfile
from collections.abc import Callable

# Sparse, so a bound on address space rather than on memory: 256 pictures of 1 megapixel.
ARENA_BYTES = 1024 * 1024 * 1024

# Ranges begin at page bounds (16 KiB on Apple Silicon), so that no two pictures share a page.
_ALIGN_BYTES = 16 * 1024


class ArenaFull(Exception):
    """No free range of that size."""


class Arena:
    """Owner's side: creates the file and gives out byte ranges, first fit.

    Attributes:
        relieve: gives back a range that somebody only keeps for later, when there is no room; False where nobody does.
    """

    def __init__(self, size_bytes: int = ARENA_BYTES) -> None:
        self.size_bytes = size_bytes
        self.fd = _unlinked_file(size_bytes)
        self._taken: list[tuple[int, int]] = []  # (offset, end), sorted
        self.relieve: Callable[[], bool] = lambda: False

    def take(self, size_bytes: int) -> int:
        """Return the offset of a free range of `size_bytes`.

        Raises:
            ArenaFull: there is none; the caller waits until a range is given back.
        """
        size_bytes = -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        start = 0
        for offset, end in self._taken:
            if offset - start >= size_bytes:
                break
            start = end
        if start + size_bytes > self.size_bytes:
            raise ArenaFull
        bisect.insort(self._taken, (start, start + size_bytes))
        return start

    def take_many(self, sizes_bytes: list[int]) -> list[int] | None:
        """Return the offsets of a free range of each size, or None (and take nothing) when there are not so many."""
        offsets: list[int] = []
        while len(offsets) < len(sizes_bytes):
            try:
                offsets.append(self.take(sizes_bytes[len(offsets)]))
            except ArenaFull:
                if not self.relieve():
                    for offset in offsets:
                        self.give_back(offset)
                    return None
        return offsets

    def give_back(self, offset: int) -> None:
        """Free the range that begins at `offset`."""
        index = bisect.bisect_left(self._taken, (offset, 0))
        if index == len(self._taken) or self._taken[index][0] != offset:
            raise ValueError(f"no range begins at {offset}")
        del self._taken[index]

    @property
    def taken(self) -> int:
        """How many ranges are given out."""
        return len(self._taken)

    def close(self) -> None:
        """Close the descriptor; workers keep theirs."""
        os.close(self.fd)


def map_arena(fd: int, *, writable: bool) -> mmap.mmap:
    """Return the arena behind an inherited descriptor as a buffer of its full size."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return mmap.mmap(fd, 0, access=access)


def _unlinked_file(size_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("vlmd-arena", os.MFD_CLOEXEC)
    else:
        # macOS has no memfd: a temporary file that has lost its name. Not run on Linux.
        fd, path = tempfile.mkstemp(prefix="vlmd-arena-")
        os.unlink(path)  # noqa: PTH108 - a descriptor and its path, not a Path
    os.ftruncate(fd, size_bytes)
    return fd
