"""What the client needs from the world, so that one set of procedures serves both the sync and the async client.

All procedures (connect, spawn, call, describe) are written once as coroutines over `Runtime`. `AsyncRuntime` runs them
on anyio; with `BlockingRuntime` every await returns without ever suspending, so `run` drives a coroutine to its end
in one step, on the caller's own thread and without an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol, TypeAlias, TypeVar

_Result = TypeVar("_Result")

Procedure: TypeAlias = Callable[[], Coroutine[object, None, None]]


class Signal(Protocol):
    """Wakes the one procedure that waits on it. Set before the wait, the wait returns at once."""

    def set(self) -> None:
        """Wake the waiter. The sync client calls it from another thread."""

    def clear(self) -> None:
        """Forget that it was set."""

    async def wait(self, until_s: float | None) -> None:
        """Return when it is set or the clock reaches `until_s`."""


class Lock(Protocol):
    """Held by one procedure at a time."""

    async def acquire(self, until_s: float) -> bool:
        """Return True when it is held, False when the clock reaches `until_s` first."""

    def release(self) -> None:
        """Let another have it."""


class Runtime(Protocol):
    """Clock, waiting and background work. Times are seconds of its monotonic clock."""

    def now_s(self) -> float:
        """Return the time."""

    def signal(self) -> Signal:
        """Return a new signal."""

    def lock(self) -> Lock:
        """Return a new lock."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def readable(self, fd: int) -> None:
        """Wait until a read of `fd` would not block, or its other end is gone."""

    async def writable(self, fd: int, until_s: float) -> bool:
        """Wait until a write to `fd` would not block; return False when the clock reaches `until_s` first."""

    def background(self, procedure: Procedure, name: str) -> None:
        """Run `procedure` beside the caller. It must end by itself and never raise."""

    async def in_thread(self, function: Callable[[], _Result]) -> _Result:
        """Run a blocking `function`."""
