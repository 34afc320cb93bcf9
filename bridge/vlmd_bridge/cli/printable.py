"""Text of others on a terminal: a model's words or a file's name must not move the cursor or set colours."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with every character that is no printable one replaced."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)
