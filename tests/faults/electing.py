"""The part of a daemon that elects, listens and leaves, in processes of its own: real locks, sockets and signals.

A daemon's workers would cost a second of work a round and have no part in it. The processes are forked from a server
that has the modules loaded. What a starter that loses does is what a client does: connect to the winner, and start
again where nobody answers.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import socket
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.abc

from vlmd_bridge.daemon.election import LostElection
from vlmd_bridge.daemon.listeners import Listeners
from vlmd_bridge.daemon.watches import watch_idle, watch_signals
from vlmd_protocol.dialect import PLAIN, Dialect

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

Barrier: TypeAlias = multiprocessing.synchronize.Barrier

# Nothing here takes so long, on any machine.
LIMIT_S = 30.0

# Between two looks of one that lost against a daemon that no longer answers.
_AGAIN_S = 0.002


def compete(path: Path, barrier: Barrier | None, report: Connection, dying: int = 0, idle_s: float = 0.0) -> None:
    """Start at `path` together with the others at `barrier`; report what came of it, and serve where elected.

    Args:
        path: to listen at.
        barrier: of those who start together; None to start at once.
        report: gets ``("ready", own pid)`` or ``("running", the winner's)``.
        dying: process id of an owner that is about to end; its answers count for nothing.
        idle_s: end after so long without a connection; 0 for never.
    """
    if barrier is not None:
        barrier.wait(LIMIT_S)
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            listeners = Listeners({path: PLAIN})
        except LostElection:
            winner = _ask_dying(path)
            if winner is not None and winner != dying:
                report.send(("running", winner))
                return
            time.sleep(_AGAIN_S)
            continue
        try:
            anyio.run(_serve, listeners, report, idle_s)
        finally:
            listeners.close()
        return
    report.send(("neither", 0))


def ask(path: Path) -> int | None:
    """Return the process id of who answers at `path`; None where the connection is refused.

    Raises:
        ConnectionError: the connection was made, and nobody answered on it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LIMIT_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            connection.sendall(b"who\n")
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionError("accepted and closed before the request") from None
        answer = connection.recv(32)
    if not answer:
        raise ConnectionError("accepted and never answered")
    return int(answer)


def _ask_dying(path: Path) -> int | None:
    try:
        return ask(path)
    except ConnectionError:
        return None  # it was killed with our connection in its hands


def listeners_at(path: Path) -> int:
    """Return how many sockets listen that were bound at `path`, reachable or not (Linux)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    # Flags: bit 16 is __SO_ACCEPTCON, a listening socket.
    return sum(len(row) == 8 and row[7] == str(path) and int(row[3], 16) >> 16 & 1 for row in rows)


async def _serve(listeners: Listeners, report: Connection, idle_s: float) -> None:
    stop = anyio.Event()
    listeners.bind(_answer, lambda _: stop.set())
    report.send(("ready", os.getpid()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_signals, lambda _: stop.set(), lambda: None)
        tasks.start_soon(listeners.run)
        if idle_s:
            tasks.start_soon(partial(_leave, listeners, idle_s, stop))
        await stop.wait()
        listeners.stop()
        tasks.cancel_scope.cancel()


async def _leave(listeners: Listeners, idle_s: float, stop: anyio.Event) -> None:
    await watch_idle(idle_s, busy=lambda: listeners.connections > 0, leave=listeners.leave_if_nobody_waits)
    stop.set()


async def _answer(_: Dialect, stream: anyio.abc.SocketStream) -> None:
    try:
        await stream.receive()
        await stream.send(str(os.getpid()).encode())
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return
