"""What a caller gets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vlmd_protocol.messages import FrameResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What one frame shows.

    Attributes:
        index: the caller's own number, else the frame's position among all images of the call.
        timestamp: as the caller gave it.
        image_path: absolute.
        description: what can be seen.
        activity: what is being done.
        apps: programs that can be seen.
        topics: what it is about.
        raw_response: the model's text, where it is no record.
        record: the object that validates against the caller's schema.
        error: why this frame failed; the string fields are filled all the same.
        code: one of `vlmd_protocol.errors.FRAME_CODES` where it failed.
        id: as the caller gave it.
    """

    index: int
    timestamp: int | float | None
    image_path: str
    description: str
    activity: str
    apps: list[str]
    topics: list[str]
    raw_response: str | None = None
    record: Any = None
    error: str | None = None
    code: str | None = None
    id: int | str | None = None

    @property
    def ok(self) -> bool:
        """Whether the frame was described."""
        return self.error is None and self.code is None

    @classmethod
    def of(cls, result: FrameResult) -> Frame:
        """Return the frame of a result line."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Frames delivered so far, and of how many; `total` is None while an iterable's end is not in sight."""

    current: int
    total: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some frames, in order.

    Attributes:
        batch: number of the batch, from 1.
        results: its frames.
        progress: of the whole call.
        done: whether it is the last. Of a live source, one that takes over a second to give the next frames, the end is
            not known in time: no batch is marked.
    """

    batch: int
    results: list[Frame]
    progress: Progress
    done: bool
