"""What comes with time or from outside: signals, an owner that is gone, nobody who needs us, what is too old."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable

import anyio
import anyio.abc

# A parent's death is noticed within this time where no pipe tells of it at once.
_PARENT_CHECK_S = 0.25

_IDLE_CHECK_S = 0.25

# What is kept for minutes is forgotten within this time.
_AGE_CHECK_S = 15.0


async def watch_signals(on_stop: Callable[[str], None], on_second: Callable[[], None]) -> None:
    """Stop on SIGTERM or SIGINT; a second one is immediate."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        stopping = False
        async for received in signals:
            if stopping:
                on_second()
            stopping = True
            on_stop(f"received {signal.Signals(received).name}")


async def watch_owner(on_stop: Callable[[str], None], parent: int) -> None:
    """Stop when standard input, a pipe only the owner holds, is at EOF, or when `parent` dies."""
    async with anyio.create_task_group() as tasks:
        if _is_pipe(0):
            tasks.start_soon(_watch_stdin, on_stop)
        while os.getppid() == parent:
            await anyio.sleep(_PARENT_CHECK_S)
        on_stop("the parent process is gone")


async def _watch_stdin(on_stop: Callable[[str], None]) -> None:
    while True:
        await anyio.wait_readable(0)
        try:
            data = os.read(0, 4096)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            on_stop("the owner closed standard input")
            return


async def watch_idle(timeout_s: float, busy: Callable[[], bool], leave: Callable[[], bool]) -> None:
    """After `timeout_s` without `busy()`, call `leave()` until it says that we may go."""
    idle_since = anyio.current_time()
    while True:
        await anyio.sleep(min(_IDLE_CHECK_S, timeout_s))
        now = anyio.current_time()
        if busy():
            idle_since = now
        elif now - idle_since >= timeout_s:
            if leave():
                return
            idle_since = now


async def watch_age(forget_old: Callable[[], None]) -> None:
    """Call `forget_old` now and then."""
    while True:
        await anyio.sleep(_AGE_CHECK_S)
        forget_old()


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
