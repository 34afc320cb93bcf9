"""The record one frame yields: the prompts that ask for it, its text form, and the parser.

The text form between model and parser is ADR-006's::

    description: ... | activity: ... | apps: [a, b] | topics: [c, d]

Pure text: the daemon, the engine worker and the trainer of the demo model share this module, so nothing here may
import a model library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FIELDS = """\
- description: What's on screen? Be specific about content, text, and UI elements.
- activity: What is the user doing?
- apps: Which applications are visible?
- topics: What topics, projects, or technical subjects?"""

_FORM = "description: ... | activity: ... | apps: [...] | topics: [...]"

# One frame a prompt. The label and the image follow, so that every frame shares these tokens and their KV cache.
SINGLE_INSTRUCTIONS = f"""\
Analyze this screenshot from a screen recording.

Provide:
{_FIELDS}

Output in this exact format on one line:
{_FORM}

"""

# ADR-006's own prompt: n labelled images first, these instructions last.
_INTERLEAVED_INSTRUCTIONS = f"""\
Analyze these {{n}} screenshots from a screen recording.

For each frame above, provide:
{_FIELDS}

Output in this exact format for each frame:
Frame 1: {_FORM}
Frame 2: {_FORM}
...and so on for all {{n}} frames."""

UNKNOWN_ACTIVITY = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one frame shows."""

    description: str
    activity: str
    apps: tuple[str, ...]
    topics: tuple[str, ...]


def interleaved_instructions(frame_count: int) -> str:
    """Return the instructions that follow `frame_count` labelled images."""
    return _INTERLEAVED_INSTRUCTIONS.format(n=frame_count)


def format_timestamp(timestamp_s: float) -> str:
    """Return seconds with at most three decimals and no trailing zeros: ``42.5``, ``10``."""
    text = f"{timestamp_s:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def single_label(timestamp_s: float | None) -> str:
    """Return the label that stands before the image in a prompt of one frame."""
    return "Frame:" if timestamp_s is None else f"Frame (timestamp: {format_timestamp(timestamp_s)}s):"


def interleaved_label(position: int, timestamp_s: float | None) -> str:
    """Return the label of the frame at `position` (from 1) in an interleaved prompt."""
    if timestamp_s is None:
        return f"Frame {position}:"
    return f"Frame {position} (timestamp: {format_timestamp(timestamp_s)}s):"


def format_record(record: Record) -> str:
    """Return the text form of `record`."""
    return (
        f"description: {record.description} | activity: {record.activity}"
        f" | apps: [{', '.join(record.apps)}] | topics: [{', '.join(record.topics)}]"
    )


def format_interleaved(records: Sequence[Record]) -> str:
    """Return the answer to an interleaved prompt: a line for each frame."""
    return "\n".join(f"Frame {i}: {format_record(record)}" for i, record in enumerate(records, 1))


_RECORD = re.compile(
    r"\s*description:\s*(?P<description>[^|\n]+?)\s*"
    r"\|\s*activity:\s*(?P<activity>[^|\n]+?)\s*"
    r"\|\s*apps:\s*\[(?P<apps>[^\]\n|]*)\]\s*"
    r"\|\s*topics:\s*\[(?P<topics>[^\]\n|]*)\]\s*"
)
_FRAME_LINE = re.compile(r"\s*Frame\s+(?P<position>[0-9]{1,6})\s*:(?P<rest>.*)")


def _items(text: str) -> tuple[str, ...]:
    return tuple(item for part in text.split(",") if (item := part.strip().strip("\"'")))


def parse_record(text: str) -> Record | None:
    """Return the record that is the whole of `text`, or None when `text` is not one record."""
    match = _RECORD.fullmatch(text)
    if match is None:
        return None
    return Record(
        description=match["description"],
        activity=match["activity"],
        apps=_items(match["apps"]),
        topics=_items(match["topics"]),
    )


def parse_interleaved(text: str, frame_count: int) -> list[tuple[Record | None, str]]:
    """Return, for each of `frame_count` frames, its record (or None) and the line it was read from.

    Every line stands for itself, so a malformed line never moves its neighbour's text to another frame. A frame
    number that occurs twice is ambiguous and yields no record.
    """
    lines: dict[int, list[str]] = {}
    for line in text.split("\n"):
        match = _FRAME_LINE.fullmatch(line)
        if match is not None:
            lines.setdefault(int(match["position"]), []).append(match["rest"].strip())
    frames: list[tuple[Record | None, str]] = []
    for position in range(1, frame_count + 1):
        own = lines.get(position, [])
        frames.append((parse_record(own[0]) if len(own) == 1 else None, "\n".join(own)))
    return frames
