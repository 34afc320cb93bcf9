"""Rows of a text model: mlx-lm's BatchGenerator as a `Generator`.

Its caches and its prefill are used as they are: prompts are prefilled together and in chunks, which the correctness
gate compares with rows alone. The decode step is ours: mlx-lm's cuts the logits into rows for logits processors and
samplers, normalises them and keeps the log-probabilities of the whole vocabulary for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from vlmd_bridge.engine.batch import Produced, Prompt
from vlmd_bridge.engine.control import RowControl
from vlmd_bridge.engine.sampling import BatchSampler, penalised

# mlx-lm's own default.
PREFILL_ROWS = 8

# Prompt tokens of one step, of all rows together: what a cancel or another row's next token may have to wait for.
# mlx-lm's batches take 2,048 of each row, its single streams 512.
_PREFILL_STEP_TOKENS = 512


class TextRows:
    """See `Generator`."""

    def __init__(self, model: Any, eos_token_ids: Sequence[int], *, width: int, sampler: BatchSampler) -> None:
        self._picker = _Picker(sampler)
        rows = min(PREFILL_ROWS, width)
        self._generator = BatchGenerator(
            model,
            stop_tokens=[[token] for token in eos_token_ids],
            sampler=self._picker,
            completion_batch_size=width,
            prefill_batch_size=rows,
            prefill_step_size=_PREFILL_STEP_TOKENS,
        )
        self._generator._prompt_batch = _Prefill.empty(model, self._picker, prefill_step_size=_PREFILL_STEP_TOKENS)
        self._generator._generation_batch = _Decode.empty(model, self._picker)
        self._width = width

    def room(self) -> int:
        """Return the free slots: mlx-lm keeps what waits in order."""
        return self._width - len(self._picker.controls)

    def insert(self, prompt: Prompt) -> int:
        """Take a row."""
        (uid,) = self._generator.insert([prompt.token_ids], max_tokens=[prompt.max_tokens])
        self._picker.controls[uid] = prompt.control
        return int(uid)

    def next(self) -> list[Produced]:
        """Decode and prefill."""
        generator = self._generator
        rows = len(generator._currently_processing) + len(generator._unprocessed_sequences)
        generator.prefill_step_size = _PREFILL_STEP_TOKENS // max(1, min(rows, PREFILL_ROWS))
        produced = []
        for response in self._generator.next()[1]:
            if response.finish_reason is not None:
                del self._picker.controls[response.uid]
            produced.append(Produced.of(response.uid, response.token, response.finish_reason))
        return produced

    def remove(self, uid: int) -> None:
        """Let a row go."""
        self._generator.remove([uid])
        del self._picker.controls[uid]

    def close(self) -> None:
        """Release the wired limit."""
        self._generator.close()


class _Picker:
    """Chooses the tokens of a batch; stands where mlx-lm keeps the sampler that its batches share."""

    def __init__(self, sampler: BatchSampler) -> None:
        self.controls: dict[int, RowControl] = {}
        self._sampler = sampler

    def pick(self, uids: Sequence[int], inputs: mx.array, logits: mx.array) -> mx.array:
        """Return the next token of the rows `uids`, whose last tokens were `inputs`; `logits` is [rows, vocabulary]."""
        rows = [self.controls[uid] for uid in uids]
        if any(row.follows for row in rows):
            # The forward pass runs while grammars read the tokens before it.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            tokens: Any = inputs.tolist()
            for row, token in zip(rows, tokens, strict=True):
                if row.position:  # before that, the input is the prompt's end
                    row.consume(token)
        return self._sampler.choose(penalised(logits, rows), rows)

    def __call__(self, logprobs: mx.array) -> mx.array:
        raise RuntimeError("mlx-lm sampled by itself")


class _Decode(GenerationBatch):  # type: ignore[misc]
    """mlx-lm's decoding rows with a step of our own."""

    _next_tokens: mx.array

    def _step(self) -> tuple[list[int], list[None]]:
        inputs = self._current_tokens = self._next_tokens
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens = self.fallback_sampler.pick(self.uids, inputs, logits)
        # Begun before the last tokens are waited for: the device is never idle between steps.
        mx.async_eval(self._next_tokens)  # type: ignore[no-untyped-call]
        self._current_logprobs = self._next_logprobs = [None] * len(self.uids)
        tokens: Any = inputs.tolist()
        for row, token in zip(self.tokens, tokens, strict=True):
            row.append(token)
        return tokens, self._current_logprobs

    def extract_cache(self, idx: int) -> list[Any]:
        """Return nothing: caches of rows that ended are not used again."""
        return []


class _Prefill(PromptProcessingBatch):  # type: ignore[misc]
    """mlx-lm's prefill, which hands its rows to `_Decode`."""

    uids: list[int]
    prompt_cache: list[Any]
    tokens: list[list[int]]
    samplers: list[Any]
    logits_processors: list[Any]
    max_tokens: list[int]

    def generate(self, tokens: list[list[int]]) -> _Decode:
        """Prefill what is left of `tokens` and return the rows to decode."""
        if any(len(row) > 1 for row in tokens):
            self.prompt([row[:-1] for row in tokens])
        decode = _Decode(
            self.model,
            self.uids,
            mx.array([row[-1] for row in tokens]),
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
        )
        self.uids, self.prompt_cache, self.tokens = [], [], []
        self.samplers, self.logits_processors, self.max_tokens = [], [], []
        return decode
