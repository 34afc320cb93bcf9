"""Errors, drawn first.

::

    VlmdError
    ├── RequestError                    the daemon refused a request or ended it; `code` says why
    │   ├── InvalidRequestError         (ValueError) the request itself is wrong
    │   ├── ModelError                  the model cannot be loaded or is not there
    │   ├── EngineUnavailableError      the engine crashed too often and is not restarted for now
    │   ├── BusyError                   queues are full; `retry_after_s` says when to try again
    │   ├── CancelledError_             the request was cancelled
    │   ├── ShuttingDownError           the daemon drains
    │   └── InternalError               a defect of the daemon
    ├── DaemonError                     no usable daemon
    │   ├── DaemonNotFoundError         (FileNotFoundError) no command starts one; every place tried is named
    │   ├── StartError                  it started and failed before it was ready
    │   ├── ConnectError                (ConnectionError) nobody answers at the socket
    │   ├── ConnectionLostError         (ConnectionError) it went away while a request was under way
    │   ├── CrashLoopError              it crashes again and again; the last log lines are in the message
    │   └── UnsafeSocketError           (PermissionError) the socket or its folder is not ours alone
    ├── DeadlineError                   (TimeoutError) a deadline passed; `phase` says which
    ├── ProtocolError                   the peer sent what the protocol does not allow
    └── ClosedError                     the client was closed, or is used after a fork

`CODES` is the closed list of request codes, `FRAME_CODES` that of a single frame; SPEC.md, the exceptions and the
TypeScript client are generated from or checked against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vlmd_protocol.limits import MAX_ECHO_CHARS


class VlmdError(Exception):
    """Base of all errors of vlmd.

    Attributes:
        code: stable and short, for programs.
    """

    code: str = "unknown"


class RequestError(VlmdError):
    """A request ended with an error line.

    Attributes:
        code: one of `CODES`; a newer daemon may send one that this client does not know.
        retryable: whether the same request may succeed later, unchanged.
        data: details as the daemon sent them.
    """

    def __init__(self, message: str, *, code: str, retryable: bool = False, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.data = data or {}

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the daemon suggests to try again, where it does."""
        after_ms = self.data.get("retryAfterMs")
        return after_ms / 1000 if isinstance(after_ms, int | float) else None


class InvalidRequestError(RequestError, ValueError):
    """The request itself is wrong; asking again changes nothing."""


class ModelError(RequestError):
    """The model cannot be loaded or is not there."""


class EngineUnavailableError(RequestError):
    """The engine crashed too often and is not restarted for now."""


class BusyError(RequestError):
    """Queues are full."""


class CancelledError_(RequestError):  # noqa: N801 - asyncio and concurrent.futures own the plain name
    """The request was cancelled."""


class ShuttingDownError(RequestError):
    """The daemon drains and takes no new work."""


class InternalError(RequestError):
    """A defect of the daemon; its log has the traceback."""


class DaemonError(VlmdError):
    """There is no usable daemon."""

    code = "daemon_unavailable"


class DaemonNotFoundError(DaemonError, FileNotFoundError):
    """No command that starts a daemon was found; the message names every place tried."""

    code = "daemon_not_found"


class StartError(DaemonError):
    """The daemon started and failed before it was ready.

    Attributes:
        code: the code of the daemon's own reason where it gave one, else ``start_failed``.
    """

    def __init__(self, message: str, *, code: str = "start_failed") -> None:
        super().__init__(message)
        self.code = code


class ConnectError(DaemonError, ConnectionError):
    """Nobody answers at the socket."""

    code = "connect_failed"


class ConnectionLostError(DaemonError, ConnectionError):
    """The daemon went away while a request was under way."""

    code = "connection_lost"


class CrashLoopError(DaemonError):
    """The daemon crashes again and again."""

    code = "crash_loop"


class UnsafeSocketError(DaemonError, PermissionError):
    """The socket or its folder belongs to someone else, is open to others, or is not what it should be."""

    code = "socket_unsafe"


class DeadlineError(VlmdError, TimeoutError):
    """A deadline passed.

    Attributes:
        phase: ``connect``, ``start``, ``first_byte``, ``between_batches`` or ``total``.
    """

    code = "deadline_exceeded"

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class ProtocolError(VlmdError):
    """The peer sent what the protocol does not allow."""

    code = "protocol_violation"


class ClosedError(VlmdError):
    """The client was closed, or is used in a forked child."""

    code = "client_closed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """An entry of the closed list of codes."""

    meaning: str
    retryable: bool = False
    exception: type[RequestError] = InvalidRequestError


CODES: Final[dict[str, Code]] = {
    "parse_error": Code(meaning="the line is not JSON"),
    "invalid_request": Code(meaning="the line is not an object with an id and a method"),
    "invalid_params": Code(meaning="a parameter is missing, of another type or out of bounds; the message names it"),
    "method_not_found": Code(meaning="no such method"),
    "duplicate_id": Code(meaning="a request with this id is still under way on this connection"),
    "frame_too_large": Code(meaning="the line is over the limit; the connection is closed"),
    "unsupported_protocol": Code(meaning="the daemon does not speak the protocol number asked for"),
    "busy": Code(meaning="queues are full; try again after `data.retryAfterMs`", retryable=True, exception=BusyError),
    "cancelled": Code(meaning="the request was cancelled", exception=CancelledError_),
    "shutting_down": Code(meaning="the daemon drains", retryable=True, exception=ShuttingDownError),
    "model_not_loaded": Code(meaning="the request names a model that this daemon does not serve", exception=ModelError),
    "model_not_configured": Code(
        meaning="no model was named and none is configured; the message names one", exception=ModelError
    ),
    "model_not_found": Code(meaning="no model of that name on this machine", exception=ModelError),
    "model_invalid": Code(meaning="the folder is not a readable model", exception=ModelError),
    "model_incomplete": Code(meaning="files of the model are missing", exception=ModelError),
    "model_unsupported": Code(
        meaning="the installed engine does not know the model's architecture", exception=ModelError
    ),
    "model_needs_code": Code(meaning="the model brings code to execute, which is refused", exception=ModelError),
    "model_load_failed": Code(meaning="the engine failed to load the model", exception=ModelError),
    "engine_not_installed": Code(meaning="the engine is not installed: pip install 'vlmd[mlx]'", exception=ModelError),
    "engine_unavailable": Code(
        meaning="the engine crashed too often; `data.retryAfterMs` says when it is tried again",
        retryable=True,
        exception=EngineUnavailableError,
    ),
    "internal": Code(meaning="a defect of the daemon; its log has the traceback", exception=InternalError),
}

# A frame's own `code`. None of these ends a `describe_images`; a `generate`, which is one prompt, ends with them.
FRAME_CODES: Final[dict[str, Code]] = {
    "image_not_found": Code(meaning="no file at the path"),
    "image_not_a_file": Code(meaning="a directory, FIFO, device or socket"),
    "image_unreadable": Code(meaning="permission or I/O error"),
    "image_path_relative": Code(meaning="the path is not absolute; the daemon's folder is not the caller's"),
    "image_empty": Code(meaning="zero bytes"),
    "image_invalid": Code(meaning="not a picture of a known format, truncated or corrupt"),
    "image_too_large": Code(meaning="over the limit of bytes or pixels"),
    "image_aspect_ratio": Code(meaning="longer than the model's aspect ratio allows"),
    "image_timeout": Code(meaning="opening it took longer than the limit"),
    "image_crashed": Code(meaning="decoding it ended the image process"),
    "unparsed": Code(meaning="the model's text is not a record; it is in `raw_response`"),
    "truncated": Code(meaning="the token budget ended the text twice; what there is stands in `raw_response`"),
    "context_length_exceeded": Code(meaning="the prompt is longer than the model's context; the message has both"),
    "schema_invalid": Code(meaning="the schema or pattern is not one, or is beyond what the engine can enforce"),
    "template_error": Code(meaning="the model's chat template refuses the prompt"),
    "vision_unsupported": Code(meaning="the model takes no pictures"),
    "worker_crashed": Code(meaning="the engine ended while it ran", retryable=True, exception=InternalError),
    "worker_error": Code(meaning="the engine failed on it", exception=InternalError),
}


def find_code(code: str) -> Code | None:
    """Return the entry of a code, a frame's or a request's; None for one of a newer daemon."""
    return CODES.get(code) or FRAME_CODES.get(code)


def error_from_code(
    message: str, code: str | None, *, retryable: bool = False, data: dict[str, Any] | None = None
) -> RequestError:
    """Return the exception for an error line. An unknown code yields `RequestError` itself."""
    if code is None:
        return RequestError(message, code="unknown", retryable=retryable, data=data)
    entry = find_code(code)
    exception = RequestError if entry is None else entry.exception
    return exception(message, code=code, retryable=retryable, data=data)


def shorten(text: str, max_chars: int = MAX_ECHO_CHARS) -> str:
    """Return `text` in at most `max_chars` printable characters, the middle left out, for use in a message."""
    printable = "".join(char if char.isprintable() else "\ufffd" for char in text[: 4 * max_chars])
    if len(text) > 4 * max_chars:
        printable += text[-max_chars:] if text[-max_chars:].isprintable() else "\ufffd"
    if len(printable) <= max_chars:
        return printable
    head = max_chars * 2 // 3
    return f"{printable[:head]}…{printable[-(max_chars - head - 1) :]}"
