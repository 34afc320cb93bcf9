"""Text of others on a terminal: a model's words or a file's name must not move the cursor or set colours."""

from __future__ import annotations

# C0 and C1, and DEL: what a terminal acts on. A line feed and a tab belong to text; joiners within emoji do too.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def printable(text: str) -> str:
    """Return `text` with every character that is no printable one replaced."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)


def without_controls(text: str) -> str:
    """Return `text`, which may have several lines, with every control character replaced."""
    return text.translate(_CONTROLS)
