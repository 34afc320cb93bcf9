"""Why a picture cannot be used: one exception, a closed list of codes, messages that name the file."""

from __future__ import annotations

from typing import Literal, TypeAlias

PictureCode: TypeAlias = Literal[
    "image_not_found",  # nothing is there
    "image_not_a_file",  # a directory, FIFO, device or socket
    "image_unreadable",  # permission, I/O error
    "image_path_relative",  # the daemon's directory is not the caller's
    "image_empty",  # zero bytes
    "image_invalid",  # not a picture, truncated, corrupt, format not allowed
    "image_too_large",  # bytes, pixels or memory
    "image_aspect_ratio",  # longer and thinner than the model takes
]

# A path in a message is for recognising the file, not for copying: its end tells most.
_SHOWN_CHARS = 160


class PictureError(Exception):
    """A picture that costs only itself: `code` for programs, the message for people."""

    def __init__(self, code: PictureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def shown(text: str) -> str:
    """Return a path or a library's own words fit for a message: one encodable line, only the end if it is long."""
    if len(text) > _SHOWN_CHARS:
        text = "..." + text[-_SHOWN_CHARS:]
    if text.isprintable():
        return text
    # Control characters would break a log line, surrogates (bytes that are not UTF-8) cannot be encoded at all.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
