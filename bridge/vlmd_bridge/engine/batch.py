"""Continuous batching: add, step, remove. One `Batch` for every model; what decodes its rows is a `Generator`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import mlx.core as mx

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.control import RowControl
from vlmd_bridge.engine.detokenizer import TextStream
from vlmd_bridge.engine.output import Answer
from vlmd_bridge.engine.sampling import BatchSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt ready to run. `inputs` are keyword arguments of the language model, `inputs_embeds` among them."""

    token_ids: list[int]
    inputs: dict[str, Any]
    control: RowControl
    max_tokens: int
    text: TextStream
    answer: Answer


@dataclass(kw_only=True, slots=True)
class Row:
    """One sequence. `prepare` makes its prompt and is called when it is admitted."""

    seq: int
    prepare: Callable[[], Prompt]
    stream: bool = False
    tokens: list[int] = field(default_factory=list)
    prompt: Prompt | None = None
    uid: int = -1
    error: SequenceError | None = None
    finish_reason: str = ""
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Produced:
    """A token of the row `uid`. With a `finish_reason` the generator has let the row go."""

    uid: int
    token: int
    finish_reason: Literal["stop", "length"] | None


class Generator(Protocol):
    """What prefills and decodes rows. It holds the wired memory limit (on Metal) from its making to `close`."""

    def room(self) -> int:
        """Return how many rows may be inserted now, so that they are prefilled next and in order."""
        ...

    def insert(self, prompt: Prompt) -> int:
        """Take a row and return its uid."""
        ...

    def next(self) -> list[Produced]:
        """Decode one token of every prefilled row and advance the others' prefill."""
        ...

    def remove(self, uid: int) -> None:
        """Let a row go, whatever its stage."""
        ...

    def close(self) -> None:
        """Release what is only needed while rows run."""
        ...


class Batch:
    """Rows that wait and rows that run, at most `width` at once."""

    def __init__(self, make_generator: Callable[[Batch], Generator], *, width: int, sampler: BatchSampler) -> None:
        self._make_generator = make_generator
        self.width = width
        self.sampler = sampler
        self._waiting: deque[Row] = deque()
        self._running: dict[int, Row] = {}
        self._generator: Generator | None = None

    def add(self, row: Row) -> None:
        """Queue `row`; rows are admitted in this order."""
        self._waiting.append(row)

    def step(self) -> list[Row]:
        """Decode one token of every running row, advance the prefill, and return the rows that ended."""
        ended = self._admit()
        if self._running:
            ended += self._take(self._open().next())
        return ended

    def remove(self, seq: int) -> bool:
        """Take the row of `seq` out, waiting or running; whether there was one."""
        for row in self._waiting:
            if row.seq == seq:
                self._waiting.remove(row)
                return True
        for row in self._running.values():
            if row.seq == seq:
                self._drop(row)
                return True
        return False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> int:
        """Rows that are prefilled or decoded."""
        return len(self._running)

    def streaming(self) -> Iterator[Row]:
        """Yield the running rows whose text is wanted as it comes."""
        return (row for row in self._running.values() if row.stream)

    def close(self) -> None:
        """Drop every row and the generator."""
        self._waiting.clear()
        self._running.clear()
        self.sampler.clear()
        if self._generator is not None:
            self._generator.close()
            self._generator = None
            mx.clear_cache()

    def _open(self) -> Generator:
        if self._generator is None:
            self._generator = self._make_generator(self)
        return self._generator

    def _admit(self) -> list[Row]:
        """Hand the generator its next rows, when it has free slots, in order."""
        if not self._waiting:
            return []
        failed = []
        for _ in range(min(self._open().room(), len(self._waiting), self.width - len(self._running))):
            row = self._waiting.popleft()
            row.admitted_s = time.monotonic()
            try:
                row.prompt = row.prepare()
            except SequenceError as error:
                row.error = error
                failed.append(row)
                continue
            row.uid = self._open().insert(row.prompt)
            self._running[row.uid] = row
        return failed

    def _take(self, produced: list[Produced]) -> list[Row]:
        ended = []
        for each in produced:
            row = self._running[each.uid]
            assert row.prompt is not None
            if not row.tokens:
                row.first_token_s = time.monotonic()
            # The token of a `stop` is the EOS itself, and no part of the text.
            if each.finish_reason != "stop":
                row.tokens.append(each.token)
                row.prompt.answer.feed(row.prompt.text.add(each.token))
            self._judge(row, row.prompt, each)
            if not row.finish_reason and row.error is None:
                continue
            row.finished_s = time.monotonic()
            row.prompt.answer.feed(row.prompt.text.finish())
            row.prompt.answer.finish()
            if each.finish_reason is None:
                self._drop(row)
            else:
                del self._running[row.uid]  # the generator has let it go already
            ended.append(row)
        return ended

    def _judge(self, row: Row, prompt: Prompt, each: Produced) -> None:
        """Set how `row` ended, if it did."""
        if prompt.control.error is not None:
            row.error = SequenceError("worker_error", f"the grammar lost the answer: {prompt.control.error}")
        elif prompt.control.complete or prompt.answer.stopped:
            row.finish_reason = "stop"
        else:
            row.finish_reason = each.finish_reason or ""

    def _drop(self, row: Row) -> None:
        del self._running[row.uid]
        assert self._generator is not None
        self._generator.remove(row.uid)
