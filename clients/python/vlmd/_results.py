"""What a caller gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from vlmd._schema import Mismatch, Schema
from vlmd._types import Value_co
from vlmd_protocol.messages import FrameResult, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame(Generic[Value_co]):
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
        value: the record as an instance of the type that was passed as `schema`; the record itself where that was a
            dict; None where the frame failed.
        error: why this frame failed; the string fields are filled all the same.
        code: one of `vlmd_protocol.errors.FRAME_CODES` where it failed.
        id: as the caller gave it.
        duplicate_of: `index` of the earlier frame whose text this one carries, where `dedupe` was asked for.
        cached: whether the text came from the result store, where `cache` was asked for.
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
    value: Value_co | None = None
    duplicate_of: int | None = None
    cached: bool = False

    @property
    def ok(self) -> bool:
        """Whether the frame was described."""
        return self.error is None and self.code is None

    @classmethod
    def of(cls, result: FrameResult, schema: Schema[Value_co] | None = None) -> Frame[Value_co]:
        """Return the frame of a result line; with a record that is not of the schema's type, it failed."""
        value: Value_co | None = None
        error, code = result.error, result.code
        if schema is not None and error is None and code is None:
            try:
                value = schema.value_of(result.record)
            except Mismatch as mismatch:
                error, code = str(mismatch), "unparsed"
        return cls(
            index=result.index,
            timestamp=result.timestamp,
            image_path=result.image_path,
            description=result.description,
            activity=result.activity,
            apps=result.apps,
            topics=result.topics,
            raw_response=result.raw_response,
            record=result.record,
            error=error,
            code=code,
            id=result.id,
            value=value,
            duplicate_of=result.duplicate_of,
            cached=result.cached,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Frames delivered so far, and of how many; `total` is None while an iterable's end is not in sight."""

    current: int
    total: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Generic[Value_co]):
    """Some frames, in order.

    Attributes:
        batch: number of the batch, from 1.
        results: its frames.
        progress: of the whole call.
        done: whether it is the last. Of a live source, one that takes over a second to give the next frames, the end is
            not known in time: no batch is marked.
    """

    batch: int
    results: list[Frame[Value_co]]
    progress: Progress
    done: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A piece of a generated text, or of the thinking before it; the other one is empty."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult(Generic[Value_co]):
    """The end of a generation.

    Attributes:
        text: the whole text, as its deltas were.
        reasoning: what the model thought before, where it did.
        finish_reason: ``stop``, or ``length`` where `max_tokens` ended the text; a newer daemon may have others.
        usage: tokens, tokens/s, seconds to the first token, peak memory in bytes.
        value: of the type that was passed as `schema`, the decoded object where that was a dict; None without a schema,
            or where the text is not of the type.
        value_error: why there is no value.
    """

    text: str
    reasoning: str | None
    finish_reason: str
    usage: Usage
    value: Value_co | None = None
    value_error: str | None = None
