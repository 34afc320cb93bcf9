"""Chooses the next token of every row of a batch: grammar masks, forced tokens and noise, applied at once.

mlx-vlm's BatchGenerator has one sampler for the batch and logits processors for each row. A row's processor
(`RowControl`) follows the row's grammar and enlists the row; the sampler (`BatchSampler`), which runs right behind the
processors of all rows, builds one mask for the batch. Masking row by row costs 30 to 60 % of a decode step.
"""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from vlmd_bridge.engine.budget import RecordBudget


class RowControl:
    """What decides one row's tokens, besides the model."""

    # mlx-vlm's own grammar processor sets this, which holds back every prefill while a constrained row decodes: the
    # mean width of a batch falls to 1.2 rows.
    requires_immediate_decode_yield = False

    def __init__(
        self,
        sampler: BatchSampler,
        *,
        matcher: Any = None,
        budget: RecordBudget | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._sampler = sampler
        self._matcher = matcher
        self._budget = budget
        self.temperature = temperature
        self._key = mx.random.key(int.from_bytes(os.urandom(4)) if seed is None else seed) if temperature > 0 else None
        self._forced: list[int] = []
        # Set when the grammar takes nothing more: the answer is whole, and the row need not decode its EOS.
        self.complete = False
        # Set when the grammar refused a token, which a mask makes impossible: the row alone has failed.
        self.error: str | None = None
        # With the sampler's `trace`: log-probability of each token, and its lead over the next allowed one.
        self.trace: list[tuple[mx.array, mx.array]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Enlist for the row's first token; `tokens` are those of the prompt."""
        self._sampler.enlist(self)
        return logits

    def process_last_token(self, token: int, logits: mx.array) -> mx.array:
        """Take the row's last `token` and enlist for the next one."""
        if self._matcher is not None and not self.complete and self.error is None:
            self._consume(token)
        self._sampler.enlist(self)
        return logits

    def fill_mask(self, words: NDArray[np.int32]) -> None:
        """Set in `words` the bits of the tokens that may come next."""
        if self._matcher is None or self.complete or self.error is not None:
            return
        forced = self._forced_token()
        if forced is None:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        else:
            words[:] = 0
            words.view(np.uint32)[forced // 32] = np.uint32(1 << (forced % 32))

    def noise(self, vocab_size: int) -> mx.array:
        """Return fresh Gumbel noise, [vocab_size]: argmax(logits / T + noise) is a sample at temperature T."""
        assert self._key is not None
        self._key, key = mx.random.split(self._key)
        return mx.random.gumbel((vocab_size,), key=key)

    @property
    def constrained(self) -> bool:
        """Whether a mask is needed at all."""
        return self._matcher is not None and not self.complete and self.error is None

    def _consume(self, token: int) -> None:
        if self._forced and self._forced.pop(0) != token:
            self._forced.clear()
        if not self._matcher.consume_token(token):
            self.error = str(self._matcher.get_error()).partition("\n")[0] or "the grammar refused a token"
        elif self._matcher.is_stopped():
            self.complete = True
        elif self._budget is not None:
            self._budget.advance(token)

    def _forced_token(self) -> int | None:
        if self._budget is not None and (token := self._budget.forced(self._matcher)) is not None:
            return token
        if not self._forced:
            # Text that the grammar leaves no choice about, in its usual tokens: a model that would spell it out byte
            # by byte does not get to.
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced[0] if self._forced else None


class BatchSampler:
    """The batch's sampler: greedy but for rows with a temperature."""

    def __init__(self, vocab_size: int, *, trace: bool = False) -> None:
        """`vocab_size` is the grammar's; `trace` keeps log-probabilities on each row's control."""
        self._words = -(-vocab_size // 32)
        self._trace = trace
        self._rows: list[RowControl] = []

    def enlist(self, row: RowControl) -> None:
        """Take `row` as the next row of the coming call."""
        self._rows.append(row)

    def clear(self) -> None:
        """Forget rows whose step raised before it sampled."""
        self._rows.clear()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return the next token of each row; `logprobs` is [rows, vocabulary]."""
        rows, self._rows = self._rows, []
        if len(rows) != logprobs.shape[0]:
            raise RuntimeError(f"{logprobs.shape[0]} rows to sample, {len(rows)} enlisted")
        # The forward pass runs while the masks are made.
        mx.async_eval(logprobs)  # type: ignore[no-untyped-call]
        scores = logprobs
        if any(row.constrained for row in rows):
            scores = mx.where(mx.array(self._allowed(rows, logprobs.shape[1])), logprobs, -float("inf"))
        if any(row.temperature > 0 for row in rows):
            scores = _with_noise(scores, rows)
        tokens = mx.argmax(scores, axis=-1)
        if self._trace:
            self._keep_trace(rows, logprobs, scores, tokens)
        return tokens

    def _allowed(self, rows: list[RowControl], width: int) -> NDArray[np.bool_]:
        words = np.full((len(rows), self._words), -1, dtype=np.int32)
        for row, row_words in zip(rows, words, strict=True):
            row.fill_mask(row_words)
        # A bit of every word stands for a token, least significant first (x86 and ARM are little-endian).
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=min(width, self._words * 32))
        allowed = np.zeros((len(rows), width), dtype=np.bool_)
        allowed[:, : bits.shape[1]] = bits
        # A padded vocabulary has more outputs than the grammar has tokens: only a free row may take those.
        for row, row_allowed in zip(rows, allowed, strict=True):
            if not row.constrained:
                row_allowed[:] = True
        return allowed

    @staticmethod
    def _keep_trace(rows: list[RowControl], logprobs: mx.array, scores: mx.array, tokens: mx.array) -> None:
        chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        best = mx.sort(scores, axis=-1)[:, -2:]
        leads = best[:, 1] - best[:, 0]
        for i, row in enumerate(rows):
            row.trace.append((chosen[i], leads[i]))


def _with_noise(scores: mx.array, rows: list[RowControl]) -> mx.array:
    width = scores.shape[1]
    silent = mx.zeros((width,))
    noise = mx.stack([row.noise(width) if row.temperature > 0 else silent for row in rows])
    temperatures = mx.array([row.temperature or 1.0 for row in rows])[:, None]
    return scores.astype(mx.float32) / temperatures + noise
