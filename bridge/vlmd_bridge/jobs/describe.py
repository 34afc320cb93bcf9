"""A `describe_images` request under way: its frames, the prompts they make, and the ordered lines it yields.

No IO and no clock: the scheduler moves frames, the job says what comes next and what each answer means.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vlmd_bridge import record
from vlmd_bridge.jobs.gate import Gate, Known
from vlmd_bridge.jobs.work import Decide, Frame, FrameState, Prompt, Sink
from vlmd_bridge.workers.image_messages import Reference
from vlmd_bridge.workers.messages import (
    Constraint,
    Counted,
    Delta,
    Finished,
    Part,
    Picture,
    RecordConstraint,
    SchemaConstraint,
    Start,
    Text,
)
from vlmd_protocol.connection import error_line
from vlmd_protocol.limits import MIN_TOKENS_PER_FRAME
from vlmd_protocol.messages import (
    BatchLine,
    DescribeParams,
    ErrorLine,
    FrameResult,
    Id,
    Progress,
)

# Frames that may be under way ahead of the first one not yet delivered: bounds the ordering buffer.
_MIN_WINDOW = 64
_WINDOW_BATCHES = 4

# What stands in the string fields of a frame that has no record.
_NOT_DESCRIBED = "(not described)"


@dataclass(slots=True, eq=False)
class DescribeJob:
    """State of one request.

    Attributes:
        client: whose turn it takes; the connection.
        first_undelivered: position of the first frame that no line has carried yet.
    """

    id: Id
    params: DescribeParams
    sink: Sink
    client: Hashable
    known: Known = field(default_factory=Known)
    ended: bool = False
    first_undelivered: int = 0
    _next_position: int = 0
    _results: dict[int, FrameResult] = field(default_factory=dict)
    _batches: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        """Open the gate."""
        self._gate = Gate(self.params, self.known, self.settle, lambda frame: self._result(frame, None))

    @property
    def total(self) -> int:
        """Frames of the request."""
        return len(self.params.images)

    @property
    def interactive(self) -> bool:
        """Whether it goes before batch work."""
        return self.params.priority == "interactive"

    @property
    def admissible(self) -> bool:
        """Whether another prompt may begin: frames are left, the window is open, and the reader keeps up."""
        if self.ended or not self.sink.writable:
            return False
        in_window = self._next_position - self.first_undelivered < self._window
        return bool(self._gate.again) or (self._next_position < self.total and in_window)

    @property
    def frames_per_prompt(self) -> int:
        """Frames that share a prompt."""
        return self.params.batch_size if self.params.mode == "interleaved" else 1

    @property
    def waiting(self) -> int:
        """Frames that no prompt has taken yet."""
        return 0 if self.ended else self.total - self._next_position + len(self._gate.again)

    @property
    def _window(self) -> int:
        return max(_MIN_WINDOW, _WINDOW_BATCHES * self.params.batch_size)

    def next_prompt(self) -> Prompt:
        """Take the next frames. Only while `admissible`. First those that take the place of one that failed."""
        if self._gate.again:
            return Prompt(self, [self._gate.again.pop(0)], self._budget(1))
        if self._next_position == 0:
            self._gate.begin()
        end = min(self._next_position + self.frames_per_prompt, self.total)
        frames = [Frame(i, self.params.images[i]) for i in range(self._next_position, end)]
        self._next_position = end
        return Prompt(self, frames, self._budget(len(frames)))

    def start_message(self, prompt: Prompt, seq: int) -> Start:
        """Return what the engine is to run for `prompt`."""
        return Start(
            seq=seq,
            parts=tuple(self._parts(prompt)),
            max_tokens=prompt.max_tokens,
            constraint=self._constraint(prompt),
        )

    @property
    def wants_luma(self) -> bool:
        """Whether frames are compared with one another."""
        return self._gate.near

    def reference_for(self, frame: Frame) -> Reference | None:
        """Ask the gate."""
        return self._gate.reference_for(frame)

    def relieve(self) -> bool:
        """Ask the gate."""
        return self._gate.relieve()

    def decoded(self, prompt: Prompt, decide: Decide) -> None:
        """Ask the gate."""
        self._gate.decoded(prompt, self.start_message(prompt, seq=0), decide)

    def take_late(self) -> list[Frame]:
        """Return the frames that were settled by another one's answer, each once."""
        late, self._gate.late = self._gate.late, []
        return late

    def runnable(self, prompt: Prompt) -> bool:
        """A prompt without any picture has nothing to ask."""
        return bool(prompt.described)

    def retryable(self, prompt: Prompt) -> bool:
        """Nothing of a frame is passed on before it is done."""
        return True

    def delta(self, prompt: Prompt, piece: Delta) -> None:
        """Records come whole."""

    def finished(self, prompt: Prompt, answer: Finished | Counted) -> list[Prompt]:
        """Take the engine's answer; return prompts that retry frames which the token budget cut."""
        assert isinstance(answer, Finished)
        cut = answer.finish_reason == "length"
        retries = []
        for frame, result in zip(prompt.described, self._read(prompt, answer.text), strict=True):
            if result.raw_response is None or not cut:
                self.settle(frame, result)
            elif prompt.retry:
                self.settle(frame, _failed(result, "truncated", "The token budget ended the text twice."))
            else:
                # At most twice the budget, and alone: what crowded it out the first time is gone.
                budget = 2 * max(MIN_TOKENS_PER_FRAME, prompt.max_tokens // len(prompt.described))
                retries.append(Prompt(self, [frame], budget, retry=True))
        return retries

    def fail_prompt(self, prompt: Prompt, code: str, error: str) -> None:
        """The engine failed on `prompt`: each of its frames carries the error."""
        for frame in prompt.described:
            self.fail_frame(frame, code, error)

    def fail_frame(self, frame: Frame, code: str, error: str) -> None:
        """End one frame with its own error; the others go on."""
        unread = frame.picture is None
        self.settle(frame, _failed(self._result(frame, None), code, error))
        if unread:
            self._gate.missing(frame)

    def settle(self, frame: Frame, result: FrameResult) -> None:
        """Keep the result of `frame` and send every line that is complete now, in order."""
        frame.state = FrameState.DONE
        if self.ended:
            return
        frame.failed = result.error is not None
        self._results[frame.position] = result
        self._gate.settled(frame, result)
        while not self.ended and (line := self._next_line()) is not None:
            if line.partial:
                self.sink.send(line)
            else:
                self.ended = True
                self._gate.end(complete=True)
                self.sink.end(line)

    def end_with(self, line: ErrorLine) -> None:
        """End the whole request with an error; nothing is sent after it."""
        if not self.ended:
            self.ended = True
            self._results.clear()
            self._gate.end(complete=False)
            self.sink.end(line)

    def cancel(self) -> None:
        """End it because somebody asked to."""
        self.end_with(error_line(self.id, "The request was cancelled.", "cancelled"))

    def _next_line(self) -> BatchLine | None:
        start = self.first_undelivered
        end = min(start + self.params.batch_size, self.total)
        if not all(position in self._results for position in range(start, end)):
            return None
        self.first_undelivered = end
        last = end == self.total
        return BatchLine(
            id=self.id,
            batch=next(self._batches),
            results=[self._results.pop(position) for position in range(start, end)],
            partial=not last,
            progress=Progress(current=end, total=self.total),
            done=True if last else msgspec.UNSET,
        )

    def _budget(self, frame_count: int) -> int:
        params = self.params
        if params.mode == "interleaved":
            per_frame = params.max_tokens_per_frame
            return params.max_tokens if per_frame is None else per_frame * frame_count
        return params.max_tokens_per_frame or max(MIN_TOKENS_PER_FRAME, params.max_tokens // params.batch_size)

    def _parts(self, prompt: Prompt) -> Iterator[Part]:
        frames = prompt.described
        if self.params.mode == "parallel":
            # Instructions, label, image: the instructions' tokens are the same for every frame.
            (frame,) = frames
            instructions = record.SINGLE_INSTRUCTIONS
            if self.params.prompt is not None:
                instructions = f"{self.params.prompt.rstrip()}\n\n"
            yield Text(text=instructions + record.single_label(frame.ref.timestamp))
            yield _picture(frame)
            return
        for position, frame in enumerate(frames, 1):
            yield Text(text=record.interleaved_label(position, frame.ref.timestamp))
            yield _picture(frame)
        yield Text(text=self.params.prompt or record.interleaved_instructions(len(frames)))

    def _constraint(self, prompt: Prompt) -> Constraint | None:
        if self.params.schema is not None:
            return SchemaConstraint(schema=msgspec.json.encode(self.params.schema).decode())
        if not self.params.grammar:
            return None
        interleaved = self.params.mode == "interleaved"
        return RecordConstraint(frame_count=len(prompt.described), labelled=interleaved)

    def _read(self, prompt: Prompt, text: str) -> Iterator[FrameResult]:
        frames = prompt.described
        if self.params.schema is not None:
            yield self._read_schema(frames[0], text)
        elif self.params.mode == "parallel":
            yield self._result(frames[0], record.parse_record(text), text)
        else:
            for frame, (parsed, line) in zip(frames, record.parse_interleaved(text, len(frames)), strict=True):
                yield self._result(frame, parsed, line)

    def _read_schema(self, frame: Frame, text: str) -> FrameResult:
        try:
            value: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return self._result(frame, None, text)
        return msgspec.structs.replace(self._result(frame, None), record=value, description="")

    def _result(self, frame: Frame, parsed: record.Record | None, raw: str | None = None) -> FrameResult:
        ref = frame.ref
        if parsed is None:
            parsed = record.Record(description=_NOT_DESCRIBED, activity=record.UNKNOWN_ACTIVITY, apps=(), topics=())
        else:
            raw = None
        return FrameResult(
            index=frame.position if ref.index is None else ref.index,
            timestamp=ref.timestamp,
            image_path=ref.image_path,
            description=parsed.description,
            activity=parsed.activity,
            apps=list(parsed.apps),
            topics=list(parsed.topics),
            raw_response=raw,
            id=ref.id,
        )


def _failed(result: FrameResult, code: str, error: str) -> FrameResult:
    return msgspec.structs.replace(result, code=code, error=error)


def _picture(frame: Frame) -> Picture:
    assert frame.picture is not None
    return frame.picture
