"""How much all peers together may make the daemon hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

# Lines that are not complete, requests that wait their turn, and answers that nobody takes, of all connections: two of
# the largest lines that the protocol admits, and as much for everybody else.
MAX_HELD_BYTES = 128 * 1024 * 1024

# Far beyond any host app's, and within the 256 descriptors that macOS gives a process.
MAX_CONNECTIONS = 160

# Jobs of all connections together.
MAX_JOBS = 256

# Lines of the requests under way, of all connections, beyond which no further job is taken: three days of frames at one
# a second. In memory they take about five times as much.
MAX_REQUEST_BYTES = 64 * 1024 * 1024


# What one turn of the event loop takes of one peer, where they are few: some 2,000 short requests, so that others wait
# 20 ms at most. Many peers share what four of them get, but a read of less than a page is not worth its call.
_READ_BYTES = 64 * 1024
_FEW = 4
_LEAST_READ_BYTES = 4096


def read_bytes(connections: int) -> int:
    """Return how much to read of one of so many connections at a time."""
    return max(_LEAST_READ_BYTES, _READ_BYTES * _FEW // max(_FEW, connections))


class Holder(Protocol):
    """A connection, as its weight is told."""

    @property
    def held_bytes(self) -> int:
        """What the daemon holds for it."""

    def shed(self, reason: str) -> None:
        """Close it; `reason` goes to its peer and into the log."""


def relieve(holders: Iterable[Holder], max_held_bytes: int = MAX_HELD_BYTES) -> None:
    """Close the connections that hold most until all of them together hold no more than they may."""
    heaviest_first = sorted(holders, key=lambda holder: holder.held_bytes, reverse=True)
    held_bytes = sum(holder.held_bytes for holder in heaviest_first)
    for holder in heaviest_first:
        if held_bytes <= max_held_bytes:
            return
        size = holder.held_bytes
        held_bytes -= size
        holder.shed(
            f"The connections to this daemon hold {max_held_bytes // 1024**2} MiB of requests and answers, this one "
            f"the most of it ({size // 1024**2} MiB). Send shorter lines, or read the answers faster."
        )


def refusal(jobs: int, request_bytes: int) -> str | None:
    """Return why a job is too many, or None; `request_bytes` are its own and the others'. One alone always has room."""
    if jobs >= MAX_JOBS:
        return f"{jobs} requests are under way."
    if jobs and request_bytes > MAX_REQUEST_BYTES:
        size = request_bytes // 1024**2
        return f"The requests under way have {size} MiB; beyond {MAX_REQUEST_BYTES // 1024**2} MiB none is taken."
    return None
