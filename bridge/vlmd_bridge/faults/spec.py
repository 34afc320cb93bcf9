"""What `VLMD_FAULT` may say: ``PLACE.KIND[=ARGUMENT]@POINT:WHEN[xTIMES]``, several joined by commas.

`WHEN` counts the point's occurrences in one process, from 1; at `text`, `pixels` and `path` it is a piece of the
content instead. `TIMES` is how often the fault strikes in the whole tree of processes: once unless given, ``x*`` for
every time; a process that is started again counts its occurrences anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vlmd_protocol.errors import StartError, shorten

VARIABLE: Final = "VLMD_FAULT"

# Where a fault may strike. A `token` is a row in a step; `text` and `pixels` (8 hex digits, as in the fake's words) are
# those of a sequence that the worker takes; `message` is one that it reads, on the thread that reads.
POINTS: Final = {
    "daemon": ("start", "bound", "request", "batch", "drain"),
    "store": ("read", "write"),
    "worker": ("start", "ready", "message", "text", "pixels", "step", "token", "close"),
    "image": ("start", "picture", "path", "close"),
}

# What it does there.
KINDS: Final = {
    "abort": "SIGABRT",
    "segv": "SIGSEGV",
    "kill": "SIGKILL",
    "exit": "end at once, with the status of the argument (0)",
    "oom": "take so many MiB (64), then SIGKILL, as the kernel's killer sends",
    "memory": "raise MemoryError",
    "raise": "raise an error",
    "full": "raise OSError: no space left",
    "hang": "this thread goes no further",
    "wedge": "the whole interpreter goes no further",
    "slow": "wait so many ms",
    "torn": "send half a message, then end",
    "garbage": "send what is no message",
    "shut": "close the link and live on",
    "flood": "write so many MiB (16) to standard error",
    "hush": "close standard error",
}

_LINK_KINDS: Final = ("torn", "garbage", "shut")
_LINKED: Final = ("worker", "image")
_CONTENT: Final = ("text", "pixels", "path")

# Each time is a byte in a pipe, whose capacity is 16 KiB at least where it is not memory that is short.
_MAX_TIMES: Final = 4096

_FORM: Final = re.compile(
    r"(?P<place>[a-z]+)\.(?P<kind>[a-z]+)(?:=(?P<argument>\d{1,9}))?@(?P<point>[a-z]+?)"
    r"(?::(?P<when>[^,]+?))?(?:x(?P<times>\d{1,9}|\*))?"
)


class FaultSpecError(StartError):
    """`VLMD_FAULT` cannot be followed."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(
            f"{VARIABLE}: {shorten(text)!r} {why}. A fault is PLACE.KIND[=ARGUMENT]@POINT[:WHEN][xTIMES], for example "
            "worker.abort@token:17.",
            code="config_invalid",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault. `count` is the first occurrence at which it strikes, `content` what it looks for instead."""

    text: str
    place: str
    kind: str
    argument: int | None
    point: str
    count: int
    content: str | None
    times: int | None  # None: without end


def parse(text: str) -> tuple[Fault, ...]:
    """Return the faults of `text`.

    Raises:
        FaultSpecError: it says what is wrong, and what there is.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(",") if part.strip())


def _parse_one(text: str) -> Fault:
    match = _FORM.fullmatch(text)
    if match is None:
        raise FaultSpecError(text, "is no fault")
    place, kind, point, times = match["place"], match["kind"], match["point"], match["times"] or "1"
    if place not in POINTS:
        raise FaultSpecError(text, f"has no known place; there are {', '.join(POINTS)}")
    if kind not in KINDS:
        raise FaultSpecError(text, f"has no known kind; there are {', '.join(KINDS)}")
    if point not in POINTS[place]:
        raise FaultSpecError(text, f"names no point of {place}, which has {', '.join(POINTS[place])}")
    if kind in _LINK_KINDS and place not in _LINKED:
        raise FaultSpecError(text, f"has a kind for {' and '.join(_LINKED)} only")
    when = match["when"]
    content = when if point in _CONTENT else None
    if point in _CONTENT and when is None:
        raise FaultSpecError(text, f"needs what {point} is to have, as {point}:…")
    if content is None and when is not None and not (when.isdecimal() and 0 < int(when) < 1_000_000_000):
        raise FaultSpecError(text, f"counts occurrences of {point} from 1")
    if times != "*" and not 0 < int(times) <= _MAX_TIMES:
        raise FaultSpecError(text, f"may strike 1 to {_MAX_TIMES} times, or x* for every time")
    return Fault(
        text=text,
        place=place,
        kind=kind,
        argument=None if match["argument"] is None else int(match["argument"]),
        point=point,
        count=1 if content is not None or when is None else int(when),
        content=content,
        times=None if times == "*" else int(times),
    )
