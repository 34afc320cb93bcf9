"""One connection: its reader, its one writer, and the requests that are under way on it."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.abc import SocketAttribute

from vlmd_bridge import faults
from vlmd_bridge.jobs.work import Job, TerminalLine
from vlmd_protocol.connection import Call, Refusal, ServerConnection, error_line
from vlmd_protocol.dialect import PLAIN, Dialect
from vlmd_protocol.messages import BatchLine, ErrorLine, EventLine, Id, Line

log = logging.getLogger("vlmd.session")

# Unsent bytes at which a reader counts as behind: its jobs admit no more frames until it has caught up.
_HIGH_WATER_BYTES = 256 * 1024

# Received and not run, from which on it is looked at what all connections hold together.
_UNREAD_BYTES = 64 * 1024

# Unsent bytes at which nothing more is read: refusals of a flood must not pile up.
_MAX_UNSENT_BYTES = 4 * 1024 * 1024

# How long the calls of one peer run before the others have their turn: 64 that flood keep one that does not waiting for
# some 0.1 s.
_TURN_S = 0.002

# When one that had to be closed may come again.
SHED_RETRY_MS = 2000

# A peer that takes no byte for so long is closed.
_STALL_TIMEOUT_S = 30.0

# One send, so that the stall deadline measures progress.
_WRITE_BYTES = 64 * 1024

# SIGKILL of a client and its half-close give the same EOF; only a full hang-up raises POLLHUP.
_HANGUP_CHECK_S = 0.05


class Dispatcher(Protocol):
    """What the daemon does with a session's calls."""

    @property
    def read_bytes(self) -> int:
        """What one turn of the event loop takes of one peer."""

    def dispatch(self, session: Session, call: Call) -> None:
        """Run a call; exactly one terminal line follows, now or later."""

    def cancel(self, job: Job) -> None:
        """End a job of a session that is gone."""

    def caught_up(self) -> None:
        """A session's reader is no longer behind."""

    def holds_more(self) -> None:
        """A session holds more of its peer's bytes than before."""


class Session:
    """State of one connection. Lines are queued without waiting; the writer task sends them."""

    def __init__(self, stream: anyio.abc.SocketStream, dispatcher: Dispatcher, dialect: Dialect = PLAIN) -> None:
        self.jobs: dict[Id, Job] = {}
        self.connection = ServerConnection(dialect=dialect)
        self._stream = stream
        self._dispatcher = dispatcher
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._next_look_bytes = _MAX_UNSENT_BYTES
        self._released: deque[Call] = deque()
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._room = anyio.Event()
        self._closing = False
        self._scope: anyio.CancelScope | None = None
        self._at_batch = faults.point("daemon", "batch")

    async def run(self) -> None:
        """Serve until the peer is gone or has nothing left to ask and to get."""
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._write, tasks.cancel_scope)
                await self._read()
                await self._finish_up()
                tasks.cancel_scope.cancel()
        finally:
            self._closing = True
            for job in list(self.jobs.values()):
                self._dispatcher.cancel(job)
            self.connection.close()

    # --- lines ------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """False while the reader is behind."""
        return self._outbox_bytes < _HIGH_WATER_BYTES

    @property
    def unsent(self) -> bool:
        """Whether lines wait to be sent."""
        return bool(self._outbox)

    def send(self, line: Line) -> None:
        """Queue a line that ends no request."""
        if self._closing:
            return
        if self._at_batch is not None and isinstance(line, BatchLine):
            self._at_batch()
        data = self.connection.encode(line)
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        self._wake.set()
        if self._outbox_bytes > self._next_look_bytes:
            self._next_look_bytes = self._outbox_bytes + _MAX_UNSENT_BYTES
            self._dispatcher.holds_more()

    @property
    def held_bytes(self) -> int:
        """What is held for the peer: lines that are not complete or not begun, and answers that it has not taken."""
        return self.connection.unread_bytes + self._outbox_bytes

    def shed(self, reason: str) -> None:
        """Close the connection; `reason` goes into the log and, where the peer reads, to the peer."""
        if self._closing:
            return
        log.warning("closing a connection: %s", reason)
        self._closing = True
        if not self._outbox:
            self._say(error_line(None, reason, "busy", data={"retryAfterMs": SHED_RETRY_MS}))
        self._outbox.clear()
        self._outbox_bytes = 0
        self.connection.close()
        if self._scope is not None:
            self._scope.cancel()

    def _say(self, line: ErrorLine) -> None:
        """Send a line past the queue, if the socket takes it at once."""
        raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)
        with contextlib.suppress(OSError):
            raw.send(self.connection.encode(line))

    def end(self, line: TerminalLine) -> None:
        """Queue the terminal line of a request, and run what waited for its turn."""
        self.send(line)
        if line.id is None:
            return
        self.jobs.pop(line.id, None)
        # The writer runs them: the job that ends here is still on the scheduler's stack.
        self._released.extend(self.connection.finish(line.id))
        self._wake.set()

    def notify(self, line: EventLine) -> None:
        """Queue news, for a peer that said `hello`."""
        if self.connection.negotiated:
            self.send(line)

    def cancel(self, target: Id) -> bool:
        """End the request `target`, running or waiting; False when there is none."""
        if self.connection.drop_waiting(target) or self._drop_released(target):
            self.end(error_line(target, "The request was cancelled.", "cancelled"))
            return True
        job = self.jobs.get(target)
        if job is None:
            return False
        self._dispatcher.cancel(job)
        return True

    def _drop_released(self, target: Id) -> bool:
        """Forget a call whose turn has come, and which the writer has not run yet."""
        for call in self._released:
            if call.id == target:
                self._released.remove(call)
                return True
        return False

    def _drop_unbegun(self) -> None:
        """Forget every call that has not begun, without an answer: the end of what runs must not begin it."""
        self.connection.drop_all_waiting()
        while self._released:
            self._released.extend(self.connection.finish(self._released.popleft().id))

    # --- reader and writer ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            while self._outbox_bytes > _MAX_UNSENT_BYTES:
                self._room = anyio.Event()
                await self._room.wait()
            try:
                data = await self._stream.receive(self._dispatcher.read_bytes)
            except anyio.EndOfStream:
                await self._take(self.connection.receive_eof())
                return
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._closing = True
                return
            if not await self._take(self.connection.receive(data)):
                return
            if self.connection.unread_bytes > _UNREAD_BYTES:
                self._dispatcher.holds_more()

    async def _take(self, events: Iterator[Call | Refusal]) -> bool:
        """Run calls and answer refusals; False once the stream cannot be followed any further."""
        turn_ends = anyio.current_time() + _TURN_S
        for event in events:
            if anyio.current_time() > turn_ends:
                await anyio.lowlevel.checkpoint()
                turn_ends = anyio.current_time() + _TURN_S
            if self._closing:
                return False
            if isinstance(event, Refusal):
                self.send(event.line)
                if event.fatal:
                    log.warning("closing a connection: %s", event.line.error)
                    self._drop_unbegun()
                    for job in list(self.jobs.values()):
                        self._dispatcher.cancel(job)
                    return False
            else:
                self._dispatcher.dispatch(self, event)
        return True

    async def _finish_up(self) -> None:
        """After EOF: deliver what is still owed, unless the peer has hung up for good."""
        raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)
        while not self._closing and (self.connection.live or self._outbox):
            if _hung_up(raw):
                return
            with anyio.move_on_after(_HANGUP_CHECK_S):
                await self._idle.wait()

    async def _write(self, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                self._idle = anyio.Event()
                while self._released:
                    self._dispatcher.dispatch(self, self._released.popleft())
                while self._outbox:
                    await self._send(self._outbox[0])
                    if not self._outbox:
                        return  # shed meanwhile
                    was_behind = not self.writable
                    self._outbox_bytes -= len(self._outbox.popleft())
                    if was_behind and self.writable:
                        self._next_look_bytes = _MAX_UNSENT_BYTES
                        self._dispatcher.caught_up()
                        self._room.set()
                if not self.connection.live:
                    self._idle.set()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("a peer went away while it was written to")
        except TimeoutError:
            log.warning("closing a connection: its reader took nothing for %g s", _STALL_TIMEOUT_S)
        self._closing = True
        scope.cancel()

    async def _send(self, data: bytes) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            with anyio.fail_after(_STALL_TIMEOUT_S):
                await self._stream.send(data[start : start + _WRITE_BYTES])


def _hung_up(raw: socket.socket) -> bool:
    poll = select.poll()
    poll.register(raw, 0)  # POLLHUP and POLLERR are always reported, and only on a full hang-up
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
