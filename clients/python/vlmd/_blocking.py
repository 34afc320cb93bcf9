"""The runtime of the sync client: plain blocking waits, daemon threads for what runs in the background."""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

from vlmd._clock import AwakeClock
from vlmd._runtime import Procedure

_Result = TypeVar("_Result")


def run(procedure: Coroutine[object, None, _Result]) -> _Result:
    """Run a coroutine whose awaits never suspend, and return its result.

    Raises:
        RuntimeError: it suspended: it awaited something that is not of `BlockingRuntime`.
    """
    try:
        procedure.send(None)
    except StopIteration as stop:
        result: _Result = stop.value
        return result
    procedure.close()
    raise RuntimeError("A procedure of the sync client awaited an event loop.")


class BlockingSignal:
    """A `threading.Event` with a deadline instead of a timeout."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._event = threading.Event()

    def set(self) -> None:
        """Wake the waiter."""
        self._event.set()

    def clear(self) -> None:
        """Forget that it was set."""
        self._event.clear()

    async def wait(self, until_s: float | None) -> None:
        """Block the thread until it is set, `until_s` passes, or a piece of the time to it has."""
        if until_s is None or until_s == math.inf:
            self._event.wait()
            return
        began, slice_s = self._clock.began(), self._clock.slice_s(until_s)
        self._event.wait(slice_s)
        self._clock.ended(began, slice_s)


class BlockingLock:
    """A `threading.Lock` with a deadline instead of a timeout."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()

    async def acquire(self, until_s: float) -> bool:
        """Block the thread."""
        if until_s == math.inf:
            return self._lock.acquire()
        return _in_pieces(self._clock, until_s, lambda slice_s: self._lock.acquire(timeout=slice_s))

    def release(self) -> None:
        """Wake another thread."""
        self._lock.release()


class BlockingRuntime:
    """Implements `Runtime` on threads."""

    def __init__(self, clock: AwakeClock | None = None) -> None:
        self._clock = clock or AwakeClock()

    def now_s(self) -> float:
        """Return the time that this process could run."""
        return self._clock.now_s()

    def signal(self) -> BlockingSignal:
        """Return a new signal."""
        return BlockingSignal(self._clock)

    def lock(self) -> BlockingLock:
        """Return a new lock."""
        return BlockingLock(self._clock)

    async def sleep(self, seconds: float) -> None:
        """Block the thread."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop to block

    async def readable(self, fd: int) -> None:
        """Block the thread in `poll`."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()

    async def writable(self, fd: int, until_s: float) -> bool:
        """Block the thread in `poll`."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        return _in_pieces(self._clock, until_s, lambda slice_s: bool(poll.poll(slice_s * 1000)))

    def background(self, procedure: Procedure, name: str) -> None:
        """Start a daemon thread: an idle client does not keep the interpreter alive."""
        threading.Thread(target=lambda: run(procedure()), name=f"vlmd {name}", daemon=True).start()

    async def in_thread(self, function: Callable[[], _Result]) -> _Result:
        """Call it here."""
        return function()


def _in_pieces(clock: AwakeClock, until_s: float, wait: Callable[[float], bool]) -> bool:
    """Call `wait` with seconds until it says True, looking at the clock between; False where it reached `until_s`."""
    while True:
        began, slice_s = clock.began(), clock.slice_s(until_s)
        if wait(slice_s):
            return True
        clock.ended(began, slice_s)
        if clock.now_s() >= until_s:
            return False
