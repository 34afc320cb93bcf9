"""The daemon's side of one connection, sans IO: bytes in, calls and refusals out.

A connection that never said `hello` is *plain* (ADR-006): its requests run one at a time in arrival order, `cancel`
and `shutdown` act at once, its lines are ASCII-escaped and in its listener's dialect, and it gets no unasked ones. One
that did is *negotiated* and may have many requests in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from vlmd_protocol.codec import FrameTooLarge, LineDecoder, Malformed, decode_params, decode_request, encode_line
from vlmd_protocol.dialect import PLAIN, Dialect
from vlmd_protocol.errors import find_code, shorten
from vlmd_protocol.limits import MAX_FRAME_BYTES, MAX_IN_FLIGHT, MAX_WAITING_PLAIN
from vlmd_protocol.messages import METHODS, ErrorLine, Id, Line, Request, Wire

# They act at once on a plain connection too: a client that waits for its turn could never cancel.
_IMMEDIATE = frozenset({"cancel", "shutdown"})

# Suggested to a client whose own requests fill its connection.
_RETRY_AFTER_MS = 1000


@dataclass(frozen=True, slots=True)
class Call:
    """A request to run now. `ServerConnection.finish` must follow, once."""

    id: Id
    method: str
    params: Wire


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line to send for input that is no runnable request. With `fatal`, the connection is closed after it."""

    line: ErrorLine
    fatal: bool = False


class ServerConnection:
    """State of one connection: kind, live ids, and the requests that wait."""

    def __init__(self, *, dialect: Dialect = PLAIN, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.negotiated = False
        self.dialect = dialect
        self._lines = LineDecoder(max_frame_bytes)
        self._live: set[Id] = set()
        self._running: set[Id] = set()
        self._waiting: deque[Call] = deque()
        self._line_bytes: dict[Id, int] = {}

    @property
    def unread_bytes(self) -> int:
        """Bytes of what was received and runs not yet: an unfinished line, and the lines of requests that wait."""
        return self._lines.unfinished_bytes + sum(self._line_bytes[call.id] for call in self._waiting)

    @property
    def request_bytes(self) -> int:
        """Bytes of the lines of the requests that run or wait."""
        return sum(self._line_bytes.values())

    @property
    def live(self) -> int:
        """Requests that run or wait."""
        return len(self._live)

    def receive(self, data: bytes) -> Iterator[Call | Refusal]:
        """Take bytes; yield what to run and what to refuse, in order."""
        try:
            for line in self._lines.feed(data):
                yield from self._receive_line(line)
        except FrameTooLarge as error:
            self._lines.clear()
            yield Refusal(error_line(None, str(error), "frame_too_large"), fatal=True)

    def receive_eof(self) -> Iterator[Call | Refusal]:
        """Take the end of the client's half: a last line without its line feed counts."""
        if rest := self._lines.rest():
            yield from self._receive_line(rest)

    def finish(self, request_id: Id) -> Iterator[Call]:
        """Note that the terminal line of `request_id` was sent; yield the calls that may run now."""
        self._live.discard(request_id)
        self._running.discard(request_id)
        self._line_bytes.pop(request_id, None)
        while self._waiting and (self.negotiated or not self._running):
            call = self._waiting.popleft()
            self._running.add(call.id)
            yield call

    def drop_waiting(self, request_id: Id) -> bool:
        """Forget a call that waits its turn; the caller sends its terminal line and calls `finish`."""
        for call in self._waiting:
            if call.id == request_id:
                self._waiting.remove(call)
                return True
        return False

    def drop_all_waiting(self) -> None:
        """Forget the calls that wait their turn; they get no terminal line."""
        for call in self._waiting:
            self._live.discard(call.id)
            self._line_bytes.pop(call.id, None)
        self._waiting.clear()

    def close(self) -> None:
        """Forget what has not run: the peer is gone. Megabytes are not left to the garbage collector."""
        self._lines.clear()
        self._waiting.clear()
        self._line_bytes.clear()

    def negotiate(self) -> None:
        """The client said `hello`."""
        self.negotiated = True

    def encode(self, line: Line) -> bytes:
        """Return the bytes of a line for this kind of connection."""
        if self.negotiated:
            return encode_line(line)
        return b"".join(encode_line(part, ascii_only=True) for part in self.dialect.lines(line))

    def _receive_line(self, line: bytes) -> Iterator[Call | Refusal]:
        try:
            request = decode_request(line)
            call = Call(request.id, request.method, self._params(request))
        except Malformed as error:
            yield Refusal(self._refuse_id(error.request_id, str(error), error.code))
            return
        if request.id in self._live:
            yield Refusal(self._refuse_id(request.id, "", "duplicate_id"))
            return
        immediate = self.negotiated or request.method in _IMMEDIATE
        limit = MAX_IN_FLIGHT if self.negotiated else MAX_WAITING_PLAIN + 1
        if len(self._live) >= limit and request.method not in _IMMEDIATE:
            message = f"{len(self._live)} requests of this connection are under way; the limit is {limit}."
            yield Refusal(error_line(request.id, message, "busy", data={"retryAfterMs": _RETRY_AFTER_MS}))
            return
        self._live.add(request.id)
        self._line_bytes[request.id] = len(line)
        if immediate or not self._running:
            if not (request.method in _IMMEDIATE and not self.negotiated):
                self._running.add(request.id)
            yield call
        else:
            self._waiting.append(call)

    def _params(self, request: Request) -> Wire:
        params_type = METHODS.get(request.method)
        if params_type is None:
            raise Malformed(
                f"No method {shorten(request.method)!r}; there are {', '.join(METHODS)}.",
                code="method_not_found",
                request_id=request.id,
            )
        params = decode_params(request, params_type)
        return params if self.negotiated else self.dialect.complete(request, params)

    def _refuse_id(self, request_id: Id | None, message: str, code: str) -> ErrorLine:
        # Each id gets one terminal line: a refused line with the id of a live request is answered without an id.
        if request_id in self._live:
            message = message or "A request with this id is still under way on this connection."
            return error_line(None, message, code, data={"refusedId": request_id})
        return error_line(request_id, message, code)


def error_line(request_id: Id | None, message: str, code: str, *, data: dict[str, Any] | None = None) -> ErrorLine:
    """Return the error line for one of `CODES` or `FRAME_CODES`."""
    entry = find_code(code)
    assert entry is not None, code
    return ErrorLine(
        id=request_id,
        error=message,
        code=code,
        retryable=entry.retryable,
        data=msgspec.UNSET if data is None else data,
    )
