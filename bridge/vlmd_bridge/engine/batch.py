"""Continuous batching over mlx-vlm's BatchGenerator: add, step, remove.

What is worked around here is measured in docs/engine.md and guarded by ``tests/engine/test_gate.py``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_vlm.generate import BatchGenerator

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.prefix import PrefixCache
from vlmd_bridge.engine.sampling import BatchSampler, RowControl

# Rows prefilled together lose all but the first row's deepstack features in mlx-vlm 0.7.10, silently.
PREFILL_ROWS = 1

# A prompt prefilled in chunks is wrong with images. None would be exact too, but computes logits for every position.
_PREFILL_STEP_TOKENS = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """An embedded prompt. `inputs` are the keyword arguments of the language model, `inputs_embeds` among them."""

    token_ids: list[int]
    inputs: dict[str, Any]
    control: RowControl
    max_tokens: int


@dataclass(kw_only=True, slots=True)
class Row:
    """One sequence. `prepare` embeds its prompt and is called when it is admitted."""

    seq: int
    prepare: Callable[[], Prompt]
    tokens: list[int] = field(default_factory=list)
    prompt: Prompt | None = None
    uid: int = -1
    error: SequenceError | None = None
    finish_reason: str = ""
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0


class Batch:
    """Rows that wait and rows that run, at most `width` at once."""

    def __init__(
        self,
        language_model: Any,
        processor: Any,
        *,
        width: int,
        vocab_size: int,
        prefixes: PrefixCache | None = None,
        trace: bool = False,
    ) -> None:
        """`prefixes` shares the prefill of what prompts begin with; `trace` keeps log-probabilities."""
        self._model = language_model
        self._processor = processor
        self._width = width
        self.prefixes = prefixes
        self.sampler = BatchSampler(vocab_size, trace=trace)
        self._waiting: deque[Row] = deque()
        self._running: dict[int, Row] = {}
        self._generator: BatchGenerator | None = None

    def add(self, row: Row) -> None:
        """Queue `row`; rows are admitted in this order."""
        self._waiting.append(row)

    def step(self) -> list[Row]:
        """Decode one token of every running row, advance one row's prefill, and return the rows that ended."""
        ended = self._admit()
        if self._running:
            ended += self._take(self._open().next()[1])
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

    def close(self) -> None:
        """Drop every row and release the wired limit, which the generator holds while it exists."""
        self._waiting.clear()
        self._running.clear()
        self.sampler.clear()
        if self.prefixes is not None:
            self.prefixes.clear()
        if self._generator is not None:
            self._generator.close()
            self._generator = None
            mx.clear_cache()

    def _open(self) -> BatchGenerator:
        if self._generator is None:
            self._generator = BatchGenerator(
                self._model,
                self._processor,
                # Passed always: without one, a fused greedy step would pass our controls by.
                sampler=self.sampler,
                compute_logprobs=False,
                prefill_batch_size=PREFILL_ROWS,
                prefill_step_size=_PREFILL_STEP_TOKENS,
                completion_batch_size=self._width,
            )
            if self.prefixes is not None:
                self._generator._build_mixed_prompt_batch = partial(self.prefixes.prompt_batch, self._generator)
        return self._generator

    def _admit(self) -> list[Row]:
        """Hand the generator its next rows, when it has free slots and no other row to prefill.

        The generator sorts what it queues by length: it is given no more than it prefills at once, which is one row,
        so that rows run in order and a removal takes effect before the next row's prefill.
        """
        if not self._waiting or self._open().has_pending_prompts:
            return []
        failed = []
        for _ in range(min(PREFILL_ROWS, len(self._waiting), self._width - len(self._running))):
            row = self._waiting.popleft()
            row.admitted_s = time.monotonic()
            try:
                self._insert(row, row.prepare())
            except SequenceError as error:
                row.error = error
                failed.append(row)
        return failed

    def _insert(self, row: Row, prompt: Prompt) -> None:
        row.prompt = prompt
        (row.uid,) = self._open().insert(
            [prompt.token_ids],
            max_tokens=[prompt.max_tokens],
            prompt_kwargs=[prompt.inputs],
            logits_processors=[[prompt.control]],
        )
        self._running[row.uid] = row

    def _take(self, responses: list[Any]) -> list[Row]:
        ended = []
        for response in responses:
            row = self._running[response.uid]
            assert row.prompt is not None
            if not row.tokens:
                row.first_token_s = time.monotonic()
            control = row.prompt.control
            # The token of a `stop` response is the EOS itself, and no part of the text.
            if response.finish_reason != "stop":
                row.tokens.append(response.token)
            if control.error is not None:
                row.error = SequenceError("worker_error", f"the grammar lost the answer: {control.error}")
            elif control.complete or response.finish_reason is not None:
                row.finish_reason = "stop" if control.complete else response.finish_reason
            else:
                continue
            row.finished_s = time.monotonic()
            if response.finish_reason is None:
                self._drop(row)
            else:
                del self._running[row.uid]  # the generator has let it go already
            ended.append(row)
        return ended

    def _drop(self, row: Row) -> None:
        del self._running[row.uid]
        assert self._generator is not None
        self._generator.remove(row.uid)
