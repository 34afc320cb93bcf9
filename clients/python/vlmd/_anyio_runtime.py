"""The runtime of the async client, on anyio."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from vlmd._clock import AwakeClock
from vlmd._runtime import Procedure

_Result = TypeVar("_Result")


class AsyncSignal:
    """An `anyio.Event` that can be cleared."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the waiter."""
        self._event.set()

    def clear(self) -> None:
        """Forget that it was set."""
        self._event = anyio.Event()

    async def wait(self, until_s: float | None) -> None:
        """Return when it is set, `until_s` passes, or a piece of the time to it has."""
        if until_s is None or until_s == math.inf:
            await self._event.wait()
            return
        began, slice_s = self._clock.began(), self._clock.slice_s(until_s)
        with anyio.move_on_after(slice_s):
            await self._event.wait()
        self._clock.ended(began, slice_s)


class AsyncLock:
    """An `anyio.Lock`, made in the event loop that uses it."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._lock = anyio.Lock()

    async def acquire(self, until_s: float) -> bool:
        """Suspend the task."""
        if until_s == math.inf:
            await self._lock.acquire()
            return True
        return await _in_pieces(self._clock, until_s, self._lock.acquire)

    def release(self) -> None:
        """Wake another task."""
        self._lock.release()


class AsyncRuntime:
    """Implements `Runtime` in a task group.

    Background work is shielded from the cancellation of that group's host, for a daemon that is told to end must still
    be read from; `stop` ends it.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, clock: AwakeClock | None = None) -> None:
        self._tasks = tasks
        self._clock = clock or AwakeClock(anyio.current_time)
        self._scopes: set[anyio.CancelScope] = set()

    def now_s(self) -> float:
        """Return the event loop's time, that in which this process could not run left out."""
        return self._clock.now_s()

    def signal(self) -> AsyncSignal:
        """Return a new signal."""
        return AsyncSignal(self._clock)

    def lock(self) -> AsyncLock:
        """Return a new lock."""
        return AsyncLock(self._clock)

    async def sleep(self, seconds: float) -> None:
        """Suspend the task."""
        await anyio.sleep(seconds)

    async def readable(self, fd: int) -> None:
        """Suspend the task."""
        await anyio.wait_readable(fd)

    async def writable(self, fd: int, until_s: float) -> bool:
        """Suspend the task."""
        return await _in_pieces(self._clock, until_s, lambda: anyio.wait_writable(fd))

    def background(self, procedure: Procedure, name: str) -> None:
        """Start a task."""
        self._tasks.start_soon(self._run, procedure, name=f"vlmd {name}")

    async def in_thread(self, function: Callable[[], _Result]) -> _Result:
        """Run `function` in a worker thread."""
        return await anyio.to_thread.run_sync(function)

    def stop(self) -> None:
        """Cancel what runs in the background."""
        for scope in self._scopes:
            scope.cancel()

    async def _run(self, procedure: Procedure) -> None:
        with anyio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                await procedure()
            finally:
                self._scopes.discard(scope)


async def _in_pieces(clock: AwakeClock, until_s: float, wait: Callable[[], Awaitable[None]]) -> bool:
    """Wait, looking at the clock now and then; False where it reached `until_s` first."""
    while True:
        began, slice_s = clock.began(), clock.slice_s(until_s)
        with anyio.move_on_after(slice_s):
            await wait()
            return True
        clock.ended(began, slice_s)
        if clock.now_s() >= until_s:
            return False
