"""Continuous batching: add, step, remove. One `Batch` for every model; what decodes its rows is a `Generator`."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, Protocol

import mlx.core as mx

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.control import RowControl
from vlmd_bridge.engine.detokenizer import TextStream
from vlmd_bridge.engine.output import Answer
from vlmd_bridge.engine.sampling import BatchSampler

# Slots beside the batch's width that only rows in `front` take: such a row need not wait for another one's end.
FRONT_SLOTS = 2

# While a row in front runs, others join it only so often: each join costs it a prefill, and all of them take turns.
_STEPS_HELD_BACK = 8

# So many rows in front may go before a row that waits.
_MAX_OVERTAKEN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt ready to run. `inputs` are keyword arguments of the language model, `inputs_embeds` among them."""

    token_ids: list[int]
    inputs: dict[str, Any]
    control: RowControl
    max_tokens: int
    text: TextStream
    answer: Answer

    @property
    def longest(self) -> int:
        """Tokens that its row may come to hold."""
        return len(self.token_ids) + self.max_tokens


@dataclass(kw_only=True, slots=True)
class Row:
    """One sequence. `prepare` makes its prompt and is called when it is admitted; one in `front` goes first."""

    seq: int
    prepare: Callable[[], Prompt]
    stream: bool = False
    front: bool = False
    overtaken: int = 0
    tokens: list[int] = field(default_factory=list)
    prompt: Prompt | None = None
    uid: int = -1
    error: SequenceError | None = None
    finish_reason: str = ""
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0

    @property
    def may_be_overtaken(self) -> bool:
        """Whether a row in front, coming later, goes before it."""
        return not self.front and self.overtaken < _MAX_OVERTAKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class Produced:
    """Tokens of the row `uid`, none of them an end-of-sequence token. With a `finish_reason` the row is gone."""

    uid: int
    tokens: Sequence[int]
    finish_reason: Literal["stop", "length"] | None

    @classmethod
    def of(cls, uid: int, token: int, finish_reason: Literal["stop", "length"] | None) -> Produced:
        """Return what a generator produced that tells one `token` at a time, the one that ends a sequence too."""
        return cls(uid=uid, tokens=() if finish_reason == "stop" else (token,), finish_reason=finish_reason)


class Generator(Protocol):
    """What prefills and decodes rows. It holds the wired memory limit (on Metal) from its making to `close`."""

    def room(self) -> int:
        """Return how many rows may be inserted now, so that they are prefilled next and in order."""
        ...

    def insert(self, prompt: Prompt) -> int:
        """Take a row and return its uid."""
        ...

    def next(self) -> list[Produced]:
        """Do one step, which may be the prefill of a row or a token or more of every prefilled one."""
        ...

    def remove(self, uid: int) -> None:
        """Let a row go, whatever its stage."""
        ...

    def close(self) -> None:
        """Release what is only needed while rows run."""
        ...


class Batch:
    """Rows that wait and rows that run, at most `width` at once, `FRONT_SLOTS` of these for rows in front alone.

    Attributes:
        ordinary_width: rows that run together where none is in front. Changed only while no row runs.
        held_tokens: bound of the rows that run together times the longest that any of them may become: generators hold
            the longest row's room for each. A row that would exceed it beside others waits until it does not.
    """

    def __init__(self, make_generator: Callable[[Batch], Generator], *, width: int, sampler: BatchSampler) -> None:
        self._make_generator = make_generator
        self.ordinary_width = width
        self.held_tokens = math.inf
        self.sampler = sampler
        self._waiting: deque[Row] = deque()
        self._running: dict[int, Row] = {}
        self._generator: Generator | None = None
        self._steps_held_back = 0

    @property
    def width(self) -> int:
        """Rows that run together at most."""
        return self.ordinary_width + FRONT_SLOTS

    def add(self, row: Row) -> None:
        """Queue `row`; rows are admitted in this order, those in front before others that have not waited long."""
        behind = list(takewhile(lambda other: row.front and other.may_be_overtaken, reversed(self._waiting)))
        for other in behind:
            other.overtaken += 1
        self._waiting.insert(len(self._waiting) - len(behind), row)

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

    def reset(self) -> set[int]:
        """Drop every row that was admitted, and the generator; return the sequences of those that wait."""
        waiting = self._waiting.copy()
        self.close()
        self._waiting = waiting
        return {row.seq for row in waiting}

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
        for _ in range(self._open().room()):
            if not self._may_admit():
                break
            row = self._waiting[0]
            row.admitted_s = time.monotonic()
            if row.prompt is None:
                self._make_prompt(row)
            if row.prompt is not None and not self._holds(row.prompt):
                break
            self._waiting.popleft()
            if row.prompt is None:
                failed.append(row)
                continue
            row.uid = self._open().insert(row.prompt)
            self._running[row.uid] = row
        return failed

    @staticmethod
    def _make_prompt(row: Row) -> None:
        """Set the prompt of `row`, or its error."""
        try:
            row.prompt = row.prepare()
        except SequenceError as error:
            row.error = error
        except Exception as error:  # noqa: BLE001 - boundary: nothing of it is in the generator yet
            traceback.print_exc()
            row.error = SequenceError("worker_error", f"its prompt cannot be made: {type(error).__name__}: {error}")

    def _holds(self, prompt: Prompt) -> bool:
        """Whether there is memory for `prompt` beside the rows that run; alone, it always runs."""
        running = [row.prompt.longest for row in self._running.values() if row.prompt is not None]
        return not running or (len(running) + 1) * max(*running, prompt.longest) <= self.held_tokens

    def _may_admit(self) -> bool:
        """Whether the first row that waits may join those that run."""
        if not self._waiting:
            return False
        if self._waiting[0].front:
            return len(self._running) < self.width
        if len(self._running) >= self.ordinary_width:
            return False
        if any(row.front for row in self._running.values()) and self._steps_held_back < _STEPS_HELD_BACK:
            self._steps_held_back += 1
            return False
        self._steps_held_back = 0
        return True

    def _take(self, produced: list[Produced]) -> list[Row]:
        ended = []
        for each in produced:
            row = self._running[each.uid]
            assert row.prompt is not None
            if not row.tokens:
                row.first_token_s = time.monotonic()
            for token in each.tokens:
                row.tokens.append(token)
                row.prompt.answer.feed(row.prompt.text.add(token))
                if row.prompt.answer.stopped:  # tokens behind a stop string are not counted
                    break
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
        if each.finish_reason == "stop" and not prompt.answer.stopped:
            prompt.control.end()
        if prompt.control.error is not None:
            row.error = prompt.control.error
        elif prompt.control.complete or prompt.answer.stopped:
            row.finish_reason = "stop"
        else:
            row.finish_reason = each.finish_reason or ""

    def _drop(self, row: Row) -> None:
        del self._running[row.uid]
        assert self._generator is not None
        self._generator.remove(row.uid)
