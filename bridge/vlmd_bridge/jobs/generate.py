"""A `generate` or `count_tokens` request under way: one prompt, its pictures, and the lines it yields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import msgspec

from vlmd_bridge.jobs.conversation import Conversation
from vlmd_bridge.jobs.work import Decide, Frame, FrameState, Prompt, Sink
from vlmd_bridge.workers.image_messages import Reference
from vlmd_bridge.workers.messages import (
    Constraint,
    Count,
    Counted,
    Delta,
    Finished,
    RegexConstraint,
    Sampling,
    SchemaConstraint,
    Start,
)
from vlmd_protocol.connection import error_line
from vlmd_protocol.messages import (
    CountResult,
    DeltaLine,
    ErrorLine,
    GenerateLine,
    GenerateParams,
    Id,
    PromptParams,
    ResultLine,
    Usage,
)


@dataclass(slots=True, eq=False)
class PromptJob(ABC):
    """What both share: a single prompt that is admitted once and ends with its first failure."""

    id: Id
    params: PromptParams
    conversation: Conversation
    sink: Sink
    client: Hashable
    ended: bool = False
    _taken: bool = False

    @property
    def interactive(self) -> bool:
        """Somebody waits for it, unless it says otherwise."""
        return True

    @property
    def admissible(self) -> bool:
        """Whether its prompt has yet to begin."""
        return not self.ended and not self._taken

    @property
    def waiting(self) -> int:
        """Its pictures while they have not begun; a prompt without any counts as one."""
        return max(1, self.frames_per_prompt) if self.admissible else 0

    @property
    def frames_per_prompt(self) -> int:
        """Pictures of the prompt."""
        return len(self.conversation.images)

    def next_prompt(self) -> Prompt:
        """Take the prompt."""
        self._taken = True
        frames = [Frame(i, image) for i, image in enumerate(self.conversation.images)]
        return Prompt(self, frames, self.params.max_tokens)

    @abstractmethod
    def start_message(self, prompt: Prompt, seq: int) -> Start | Count:
        """Return what the engine is to do."""

    @abstractmethod
    def delta(self, prompt: Prompt, piece: Delta) -> None:
        """Take a piece of text."""

    @abstractmethod
    def retryable(self, prompt: Prompt) -> bool:
        """Whether it may run again after the engine was lost."""

    @abstractmethod
    def finished(self, prompt: Prompt, answer: Finished | Counted) -> list[Prompt]:
        """Take the answer."""

    @property
    def wants_luma(self) -> bool:
        """Its pictures are not compared."""
        return False

    def reference_for(self, frame: Frame) -> Reference | None:
        """Its pictures are not compared."""
        return None

    def relieve(self) -> bool:
        """Nothing is kept to compare with."""
        return False

    def decoded(self, prompt: Prompt, decide: Decide) -> None:
        """Every prompt is for the engine."""
        decide(True)

    def take_late(self) -> list[Frame]:
        """No frame takes another one's answer."""
        return []

    def runnable(self, prompt: Prompt) -> bool:
        """A picture that could not be read has ended the job already."""
        return not self.ended

    def fail_prompt(self, prompt: Prompt, code: str, error: str) -> None:
        """The engine failed on it."""
        self._settle(prompt)
        self.end_with(error_line(self.id, error, code))

    def fail_frame(self, frame: Frame, code: str, error: str) -> None:
        """Without one of its pictures the prompt means something else."""
        frame.state = FrameState.DONE
        frame.failed = True
        self.end_with(error_line(self.id, error, code))

    def end_with(self, line: ErrorLine) -> None:
        """End it with an error."""
        if not self.ended:
            self.ended = True
            self.sink.end(line)

    def cancel(self) -> None:
        """End it because somebody asked to."""
        data = {"finishReason": "cancelled"}
        self.end_with(error_line(self.id, "The request was cancelled.", "cancelled", data=data))

    def _settle(self, prompt: Prompt) -> None:
        prompt.mark(FrameState.DONE)


@dataclass(slots=True, eq=False)
class GenerateJob(PromptJob):
    """Text from a prompt. `now_s` is a monotonic clock, and `arrived_s` its reading at the request."""

    params: GenerateParams
    now_s: Callable[[], float] = lambda: 0.0
    arrived_s: float = 0.0
    _first_token_s: float | None = None

    @property
    def interactive(self) -> bool:
        """Whether it goes before batch work."""
        return self.params.priority == "interactive"

    def start_message(self, prompt: Prompt, seq: int) -> Start:
        """Return what the engine is to run."""
        params = self.params
        history, parts = self.conversation.turns(prompt.frames)
        return Start(
            seq=seq,
            parts=parts,
            history=history,
            max_tokens=prompt.max_tokens,
            constraint=self._constraint(),
            sampling=Sampling(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                repetition_penalty=params.repetition_penalty,
                seed=params.seed,
            ),
            stop=tuple(params.stop or ()),
            stream=params.stream,
            thinking=params.thinking,
        )

    def delta(self, prompt: Prompt, piece: Delta) -> None:
        """Pass on a piece of text."""
        if self.ended:
            return
        if self._first_token_s is None:
            self._first_token_s = self.now_s() - self.arrived_s
        self.sink.send(DeltaLine(id=self.id, delta=piece.text or None, reasoning_delta=piece.reasoning or None))

    def retryable(self, prompt: Prompt) -> bool:
        """Not once a part was passed on: another run may say something else."""
        return self._first_token_s is None

    def finished(self, prompt: Prompt, answer: Finished | Counted) -> list[Prompt]:
        """End with the whole text."""
        assert isinstance(answer, Finished)
        self._settle(prompt)
        if self.ended:
            return []
        self.ended = True
        elapsed_s = self.now_s() - self.arrived_s
        first_s = elapsed_s - answer.decode_s if self._first_token_s is None else self._first_token_s
        usage = Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            tokens_per_s=round(answer.completion_tokens / answer.decode_s, 2) if answer.decode_s > 0 else 0.0,
            time_to_first_token_s=round(max(0.0, first_s), 4),
            peak_memory_bytes=answer.peak_memory_bytes,
        )
        self.sink.end(
            GenerateLine(
                id=self.id,
                text=answer.text,
                finish_reason=answer.finish_reason,
                usage=usage,
                reasoning=answer.reasoning,
            )
        )
        return []

    def _constraint(self) -> Constraint | None:
        if self.params.schema is not None:
            return SchemaConstraint(schema=msgspec.json.encode(self.params.schema).decode())
        return None if self.params.regex is None else RegexConstraint(pattern=self.params.regex)


@dataclass(slots=True, eq=False)
class CountJob(PromptJob):
    """How long a prompt is. Its pictures are opened, since their size counts; nothing is inferred."""

    def start_message(self, prompt: Prompt, seq: int) -> Count:
        """Return what the engine is to count."""
        history, parts = self.conversation.turns(prompt.frames)
        return Count(seq=seq, parts=parts, history=history, thinking=self.params.thinking)

    def delta(self, prompt: Prompt, piece: Delta) -> None:
        """Nothing is generated."""

    def retryable(self, prompt: Prompt) -> bool:
        """Counting twice is harmless."""
        return True

    def finished(self, prompt: Prompt, answer: Finished | Counted) -> list[Prompt]:
        """End with the count."""
        assert isinstance(answer, Counted)
        self._settle(prompt)
        if not self.ended:
            self.ended = True
            result = CountResult(
                prompt_tokens=answer.prompt_tokens,
                context_tokens=answer.context_tokens,
                max_tokens=prompt.max_tokens,
                fits=answer.prompt_tokens + prompt.max_tokens <= answer.context_tokens,
            )
            self.sink.end(ResultLine(id=self.id, result=result))
        return []
