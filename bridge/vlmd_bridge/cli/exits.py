"""Exit statuses, and which error ends with which."""

from __future__ import annotations

from typing import Final

from vlmd_protocol.errors import CODES, InvalidRequestError, ModelError, RequestError, VlmdError

OK: Final = 0
SOME_FAILED: Final = 1
USAGE: Final = 2
NO_DAEMON: Final = 3
MODEL: Final = 4

# What a shell reports for a command that SIGINT (2) or SIGPIPE (13) ended.
INTERRUPTED: Final = 128 + 2
PIPE_CLOSED: Final = 128 + 13


def error_code(error: Exception) -> str:
    """Return the stable code of `error`."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else "unknown"


def exit_status(error: VlmdError) -> int:
    """Return the status with which a command ends that `error` stopped."""
    # A daemon that failed to start for its model's sake reports that with the model's code.
    entry = CODES.get(error_code(error))
    if entry is not None and issubclass(entry.exception, ModelError):
        return MODEL
    # What is wrong with a picture, a schema or a prompt's length is no matter of how the command was written.
    if isinstance(error, InvalidRequestError) and entry is not None:
        return USAGE
    if isinstance(error, RequestError):
        return SOME_FAILED
    return NO_DAEMON
