"""Bytes to lines, lines to messages, and back. Takes bytes, returns values; no sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from vlmd_protocol.errors import shorten
from vlmd_protocol.limits import MAX_FRAME_BYTES, MAX_ID_CHARS, MAX_SAFE_INTEGER
from vlmd_protocol.messages import Id, Reply, Request, Wire

_Params = TypeVar("_Params", bound=Wire)
_NEWLINE = b"\n"
_NON_ASCII = re.compile(r"[^\x00-\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class FrameTooLarge(Exception):
    """A line passed the limit before its line feed came. The stream cannot be followed any further."""


class Malformed(Exception):
    """A line is not what the protocol allows.

    Attributes:
        code: the code of the error line that answers it.
        request_id: the line's id where it could be read.
    """

    def __init__(self, message: str, *, code: str, request_id: Id | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class LineDecoder:
    """Splits a byte stream into lines, on byte 0x0A only: U+2028, U+2029 and U+0085 are legal inside strings."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take `data` and yield each line that is now complete, without its line feed; blank lines are skipped.

        Raises:
            FrameTooLarge: a line is over the limit, whether complete or not. Lines before it were yielded.
        """
        self._buffer += data
        start = 0
        while (end := self._buffer.find(_NEWLINE, max(start, self._searched))) >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            if len(line) > self.max_frame_bytes:
                raise FrameTooLarge(self._message())
            if not line.isspace() and line:
                yield line
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if len(self._buffer) > self.max_frame_bytes:
            raise FrameTooLarge(self._message())

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of the line that is not complete yet."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget the line that is not complete."""
        self._buffer = bytearray()
        self._searched = 0

    def rest(self) -> bytes:
        """Return what stands after the last line feed, at the end of the stream, and forget it."""
        rest = bytes(self._buffer)
        self.clear()
        return b"" if rest.isspace() else rest

    def _message(self) -> str:
        return f"A line is over the limit of {self.max_frame_bytes} bytes. Send pictures by path."


_request_decoder = msgspec.json.Decoder(Request)
_reply_decoder = msgspec.json.Decoder(Reply)
_encoder = msgspec.json.Encoder()


def decode_request(line: bytes) -> Request:
    """Return the request of a line; its `params` are not looked into.

    Raises:
        Malformed: `parse_error` where it is not JSON, `invalid_request` where it is JSON and no request.
    """
    try:
        _check_utf8(line)
        return _request_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _why_no_request(line, error) from None


def decode_params(request: Request, params_type: type[_Params]) -> _Params:
    """Return the typed params of `request`.

    Raises:
        Malformed: `invalid_params`; the message names the field by its path.
    """
    try:
        # `Raw` equals no bytes; a view of it does, without a copy.
        none = memoryview(request.params) == memoryview(b"null")
        return msgspec.json.decode(b"{}" if none else request.params, type=params_type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(_explain(error, root="params"), code="invalid_params", request_id=request.id) from None


def decode_reply(line: bytes) -> Reply:
    """Return a line of the daemon as a client reads it.

    Raises:
        Malformed: it is not a line that a daemon may send.
    """
    try:
        _check_utf8(line)
        return _reply_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(_explain(error, root="line"), code="parse_error") from None


def decode_result(reply: Reply, result_type: type[_Params]) -> _Params:
    """Return the typed `result` of a reply.

    Raises:
        Malformed: there is none, or it is of another form.
    """
    try:
        return msgspec.json.decode(reply.result or b"null", type=result_type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(_explain(error, root="result"), code="parse_error", request_id=reply.id) from None


def encode_line(message: Wire, *, ascii_only: bool = False) -> bytes:
    """Return `message` as a line with its line feed.

    `ascii_only` escapes every other character: ADR-006's client decodes each chunk by itself and would break a
    character that two chunks share.
    """
    data = _encode(message)
    if ascii_only and not data.isascii():
        data = _NON_ASCII.sub(_escape, data.decode()).encode()
    return data + _NEWLINE


def _check_utf8(line: bytes) -> None:
    # msgspec looks only into the texts that it decodes, not into what it skips or keeps raw.
    if not line.isascii():
        line.decode()


def _encode(message: Wire) -> bytes:
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        # A lone surrogate, as from a file name that is no UTF-8: no JSON text may carry it.
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(message)))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _why_no_request(line: bytes, error: Exception) -> Malformed:
    """Tell JSON that is no request from what is no JSON, and find the id if there is one."""
    try:
        _check_utf8(line)
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as not_json:
        return Malformed(_explain(not_json, root="line", what="The line is not JSON"), code="parse_error")
    if not isinstance(value, dict):
        return Malformed(
            "A request is a JSON object with `id`, `method` and `params`; this line is "
            f"{'an array' if isinstance(value, list) else 'a bare value'}.",
            code="invalid_request",
        )
    request_id = value.get("id")
    return Malformed(
        _explain(error, root="line"),
        code="invalid_request",
        request_id=request_id if _is_id(request_id) else None,
    )


def _is_id(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER
    return isinstance(value, str) and len(value) <= MAX_ID_CHARS


def _explain(error: Exception, *, root: str, what: str = "") -> str:
    if isinstance(error, RecursionError):
        detail = "it is nested too deeply"
    elif isinstance(error, UnicodeError):
        detail = "it is not valid UTF-8"
    else:
        # msgspec writes the path as `$.images[...].imagePath`.
        detail = shorten(str(error).replace("`$", f"`{root}"), 300)
    return f"{what}: {detail}." if what else f"{detail}."
