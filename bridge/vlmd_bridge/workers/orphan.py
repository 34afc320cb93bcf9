"""A worker's own end when its daemon is gone, whatever the worker does at that moment."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time

# From the daemon's end to ours: a step that ends by then lets the model be released in order.
_GRACE_S = 1.2

_PR_SET_PDEATHSIG = 1


def end_with_daemon(link: socket.socket) -> None:
    """See to it that this process ends soon after the daemon at the other end of `link`. Called once, at its start.

    Two ways, since each has a gap. A thread waits for the link's hang-up, and so runs only while the interpreter does.
    On Linux the kernel kills the child of a daemon that died, even one that is stopped or holds the interpreter's lock.
    """
    threading.Thread(target=_watch, args=(link.fileno(),), name="vlmd-orphan", daemon=True).start()
    if sys.platform == "linux":
        _ask_kernel()
        if _hung_up(link.fileno(), timeout_ms=0):  # the daemon died before the kernel was asked
            os._exit(0)


def _watch(fd: int) -> None:
    while not _hung_up(fd, timeout_ms=None):
        continue
    time.sleep(_GRACE_S)
    os._exit(1)


def _hung_up(fd: int, *, timeout_ms: int | None) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always reported, and only once both directions are closed
    return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(timeout_ms))


def _ask_kernel() -> None:
    import ctypes

    # The signal is bound to the thread that started us: the daemon's main one, which lives as long as it does.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
