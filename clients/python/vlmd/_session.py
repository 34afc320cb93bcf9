"""The client's side of one connection, sans IO: requests to bytes, bytes to events. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from vlmd_protocol.codec import FrameTooLarge, LineDecoder, Malformed, decode_reply, encode_line
from vlmd_protocol.errors import (
    InvalidRequestError,
    ProtocolError,
    RequestError,
    VlmdError,
    error_from_code,
    shorten,
)
from vlmd_protocol.limits import MAX_FRAME_BYTES
from vlmd_protocol.messages import CancelParams, FrameResult, Progress, Reply, Request, Usage, Wire


@dataclass(frozen=True, slots=True)
class Answered:
    """The one answer of `request_id`; its `reply.result` is not yet typed."""

    request_id: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Batched:
    """Some frames of `request_id`; with `done` the last of them."""

    request_id: int
    results: list[FrameResult]
    progress: Progress | None
    done: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the text of `request_id`, or of the thinking before it."""

    request_id: int
    text: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class Generated:
    """The end of a generation: its whole text."""

    request_id: int
    text: str
    reasoning: str | None
    finish_reason: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Refused:
    """`request_id` ended with an error line."""

    request_id: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class News:
    """Unasked news, for everyone who waits: a model's state, or that the daemon drains."""

    event: str
    model: str | None
    state: str | None
    stage: str | None
    fraction: float | None

    @property
    def is_load_progress(self) -> bool:
        """Whether a model is on its way, so that deadlines start again."""
        return self.event == "model" and self.state in ("loading", "restarting")


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection cannot be followed any further; every pending request ends with `error`."""

    error: VlmdError


Event: TypeAlias = Answered | Batched | Piece | Generated | Refused | News | Broken


class ClientSession:
    """State of one connection: ids, and which of them are still to be answered.

    After `Broken` it takes no more bytes.
    """

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._lines = LineDecoder(max_frame_bytes)
        self._next_id = 1
        self._pending: set[int] = set()
        self._broken = False

    @property
    def pending(self) -> frozenset[int]:
        """Ids whose terminal line is awaited by somebody."""
        return frozenset(self._pending)

    def request(self, method: str, params: Wire) -> tuple[int, bytes]:
        """Return the id and the line of a new request.

        Raises:
            InvalidRequestError: the line is over what a daemon takes. It would end every request of the connection.
        """
        request_id, line = self._line(method, params)
        self._pending.add(request_id)
        return request_id, line

    def cancel(self, target: int) -> bytes:
        """Return the line that cancels `target`, empty when it has ended; what still comes for it is dropped."""
        if target not in self._pending:
            return b""
        self._pending.discard(target)
        return self._line("cancel", CancelParams(target=target))[1]

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take bytes; yield events in order."""
        try:
            for line in () if self._broken else self._lines.feed(data):
                yield from self._receive_line(line)
                if self._broken:
                    break
        except FrameTooLarge:
            limit = self._lines.max_frame_bytes
            yield self._break(ProtocolError(f"The daemon sent a line of over {limit} bytes."))

    def _line(self, method: str, params: Wire) -> tuple[int, bytes]:
        request_id = self._next_id
        raw = msgspec.Raw(encode_line(params).rstrip(b"\n"))
        line = encode_line(Request(id=request_id, method=method, params=raw))
        if (size := len(line) - len(b"\n")) > MAX_FRAME_BYTES:
            why = f"The request has {size} bytes; the daemon takes {MAX_FRAME_BYTES}. Send fewer images, or less text."
            raise InvalidRequestError(why, code="frame_too_large")
        self._next_id += 1
        return request_id, line

    def _receive_line(self, line: bytes) -> Iterator[Event]:
        try:
            reply = decode_reply(line)
        except Malformed as error:
            shown = shorten(line[:200].decode("utf-8", "replace"))
            yield self._break(ProtocolError(f"The peer sent a line that no daemon sends ({error}): {shown}"))
            return
        if reply.event is not None:
            yield News(reply.event, reply.model, reply.state, reply.stage, reply.fraction)
        elif reply.id is None:
            yield self._break(self._unaddressed(reply))
        elif not isinstance(reply.id, int) or not 0 < reply.id < self._next_id:
            yield self._break(ProtocolError(f"The peer answered request {reply.id!r}, which was never made."))
        elif reply.id in self._pending:
            yield self._answer(reply.id, reply)
        # Else it was left: its last lines may still be under way.

    def _answer(self, request_id: int, reply: Reply) -> Event:
        if reply.error is not None:
            self._pending.discard(request_id)
            error = error_from_code(reply.error, reply.code, retryable=reply.retryable, data=reply.data)
            return Refused(request_id, error)
        if reply.results is not None:
            if reply.done:
                self._pending.discard(request_id)
            return Batched(request_id, reply.results, reply.progress, reply.done)
        if reply.text is not None and reply.finish_reason is not None and reply.usage is not None and reply.done:
            self._pending.discard(request_id)
            return Generated(request_id, reply.text, reply.reasoning, reply.finish_reason, reply.usage)
        if (reply.delta is not None or reply.reasoning_delta is not None) and not reply.done:
            return Piece(request_id, reply.delta or "", reply.reasoning_delta or "")
        if reply.result and reply.done:
            self._pending.discard(request_id)
            return Answered(request_id, reply)
        return self._break(
            ProtocolError(f"The peer's line for request {request_id} has no result, batch, text or error.")
        )

    def _unaddressed(self, reply: Reply) -> VlmdError:
        if reply.error is None:
            return ProtocolError("The peer sent a line with neither an id nor an event.")
        # It could not read a line of ours: which request that was is not known, so all of them end.
        return error_from_code(reply.error, reply.code, retryable=reply.retryable, data=reply.data)

    def _break(self, error: VlmdError) -> Broken:
        self._broken = True
        self._pending.clear()
        return Broken(error)
