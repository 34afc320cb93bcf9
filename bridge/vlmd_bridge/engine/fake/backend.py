"""A deterministic backend without a model: same process, messages and fault points. For tests, ours and users'.

Its record derives from the pixels of the sequence's pictures, so that a test can tell whether the right frame got the
right words; its plain text derives from the whole prompt and the seed (`fake_answer.plain_text`). Options come in
`ConfigureEngine.path`, for example ``load_s=0.2,step_ms=1,tokens=40``.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from vlmd_bridge.engine.backend import Event, LoadError, ReportLoading, SequenceError, Usage
from vlmd_bridge.engine.fake.answer import answer, parts_of, picture_digest, thinking_of
from vlmd_bridge.engine.fake.options import FakeOptions, parse_fake_options
from vlmd_bridge.engine.output import THINK_CLOSE, THINK_OPEN, Answer
from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    ImageSpec,
    Picture,
    Start,
)


@dataclass(slots=True)
class _Row:
    start: Start
    pieces: list[str]
    answer: Answer
    done: int = 0
    admitted_s: float = field(default_factory=time.monotonic)
    first_token_s: float = 0.0


class FakeBackend:
    """See `Backend`. A step prefills one waiting row and gives every running row one token."""

    def __init__(self, info: EngineInfo, options: FakeOptions, arena: mmap.mmap) -> None:
        self.info = info
        self._options = options
        self._arena = arena
        self._waiting: list[Start] = []
        self._rows: list[_Row] = []
        self._prompt_tokens = 0
        self._completion_tokens = 0

    @classmethod
    def load(cls, configure: ConfigureEngine, arena: mmap.mmap, report: ReportLoading) -> FakeBackend:
        """Read the options and take `load_s` seconds, reporting what a real load reports.

        Raises:
            LoadError: the options are wrong, or ask for it.
        """
        began_s = time.monotonic()
        try:
            options = parse_fake_options(configure.path)
        except (ValueError, msgspec.ValidationError) as error:
            raise LoadError("model_invalid", f"fake backend: {error}") from None
        for fraction, stage in enumerate(("importing", "weights", "warming")):
            report(stage, fraction / 3)
            time.sleep(options.load_s / 3)
        if options.broken:
            raise LoadError("model_invalid", "fake backend: asked to fail its load")
        info = EngineInfo(
            name=configure.name,
            path=configure.path,
            backend="fake",
            model_type="fake",
            width=configure.width or options.width,
            context_tokens=options.context,
            weight_bytes=0,
            dtype="none",
            device="none",
            blas="none",
            threads=configure.threads or 1,
            load_s=time.monotonic() - began_s,
            versions={"python": platform.python_version()},
            image_spec=ImageSpec(
                factor=options.factor,
                min_pixels=options.min_pixels,
                max_pixels=options.max_pixels,
                max_aspect_ratio=200.0,
            ),
        )
        return cls(info, options, arena)

    def start(self, start: Start) -> None:
        """Queue `start`."""
        self._waiting.append(start)

    def step(self) -> Sequence[Event]:
        """Prefill one waiting row, then give every row its next token."""
        if self._options.step_ms:
            time.sleep(self._options.step_ms / 1000)
        events: list[Event] = []
        if self._waiting and len(self._rows) < self.info.width:
            start = self._waiting.pop(0)
            try:
                self._rows.append(self._prefill(start))
            except SequenceError as error:
                events.append(Failed(seq=start.seq, code=error.code, error=str(error)))
        for row in self._rows[:]:
            events += self._advance(row)
        return events

    def count(self, count: Count) -> Counted | Failed:
        """Count four characters, or 32 x 32 pixels, as a token."""
        tokens = _prompt_tokens(count)
        return Counted(seq=count.seq, prompt_tokens=tokens, context_tokens=self.info.context_tokens)

    def remove(self, seq: int) -> None:
        """Drop `seq`."""
        self._waiting = [start for start in self._waiting if start.seq != seq]
        self._rows = [row for row in self._rows if row.start.seq != seq]

    def usage(self) -> Usage:
        """Return the token counters; the fake holds no memory."""
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)

    def idle(self) -> None:
        """Nothing to give back."""

    def reset(self) -> set[int]:
        """Drop every sequence that has begun."""
        self._rows.clear()
        return {start.seq for start in self._waiting}

    def close(self) -> None:
        """Nothing to release."""

    def _prefill(self, start: Start) -> _Row:
        digests = [picture_digest(self._arena, part) for part in parts_of(start) if isinstance(part, Picture)]
        text = answer(start, digests)
        prompt_tokens = _prompt_tokens(start)
        if (error := self._beyond_context(prompt_tokens)) is not None:
            raise error
        self._prompt_tokens += prompt_tokens
        frames = max(1, text.count("\n") + 1)
        wobble = hashlib.blake2b(text.encode()).digest()[0] % (self._options.tokens // 4 + 1)
        pieces = _split(text, max(1, self._options.tokens * frames - wobble))
        if start.thinking:
            pieces = [THINK_OPEN, *_split(thinking_of(start), self._options.tokens // 2 or 1), THINK_CLOSE, *pieces]
        return _Row(start, pieces, Answer(stop=start.stop))

    def _advance(self, row: _Row) -> list[Event]:
        """Give `row` its next token."""
        if row.done == 0:
            row.first_token_s = time.monotonic()
        row.answer.feed(row.pieces[row.done])
        row.done += 1
        self._completion_tokens += 1
        whole = row.answer.stopped or row.done == len(row.pieces)
        ended = whole or row.done >= row.start.max_tokens
        if ended:
            row.answer.finish()
            self._rows.remove(row)
        events: list[Event] = []
        if row.start.stream:
            text, reasoning = row.answer.take()
            if text or reasoning:
                events.append(Delta(seq=row.start.seq, text=text, reasoning=reasoning))
        if ended:
            events.append(_finished(row, "stop" if whole else "length"))
        return events

    def _beyond_context(self, prompt_tokens: int) -> SequenceError | None:
        if prompt_tokens < self._options.context:
            return None
        return SequenceError(
            "context_length_exceeded",
            f"the prompt has {prompt_tokens} tokens; the context of {self.info.name} is {self._options.context}",
        )


def _prompt_tokens(prompt: Start | Count) -> int:
    # A token stands for four characters or 32 x 32 pixels, about what Qwen-VL makes of them.
    return sum(
        part.width * part.height // 1024 if isinstance(part, Picture) else -(-len(part.text) // 4)
        for part in parts_of(prompt)
    )


def _split(text: str, count: int) -> list[str]:
    """Cut `text` into `count` pieces of nearly equal length (fewer when it is short)."""
    count = min(count, max(1, len(text)))
    bounds = [len(text) * i // count for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def _finished(row: _Row, finish_reason: Literal["stop", "length"]) -> Finished:
    return Finished(
        seq=row.start.seq,
        text=row.answer.text,
        reasoning=row.answer.reasoning,
        finish_reason=finish_reason,
        prompt_tokens=_prompt_tokens(row.start),
        completion_tokens=row.done,
        prefill_s=row.first_token_s - row.admitted_s,
        decode_s=time.monotonic() - row.first_token_s,
    )
