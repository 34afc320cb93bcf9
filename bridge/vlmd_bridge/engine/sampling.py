"""Chooses the next token of every row of a batch: grammar masks, truncation and noise, applied at once.

A row's text depends on its logits, its sampling and its seed alone: noise is drawn for a row and a position by a key,
not from a state that neighbours share. A batch of greedy rows without grammar costs one argmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from llguidance import LLExecutor
from numpy.typing import NDArray

from vlmd_bridge.engine.control import RowControl

# How many of the likeliest tokens are sorted at first. A nucleus is rarely larger; sorting all of a vocabulary of
# 151,000 takes 14 ms a row on one core, these 1 ms.
_SORTED_TOKENS = 256

# Below this a temperature is as good as greedy; scores divided by less could overflow.
_MIN_TEMPERATURE = 1e-4


class BatchSampler:
    """The batch's sampler: greedy but for rows with a temperature."""

    def __init__(self, vocab_size: int, *, trace: bool = False, batched_masks: bool = True) -> None:
        """Begin.

        Args:
            vocab_size: the grammar's.
            trace: keep log-probabilities on each row's control.
            batched_masks: have llguidance fill the masks of all rows in one call.
        """
        self._words = -(-vocab_size // 32)
        self.trace = trace
        self._executor = LLExecutor(num_threads=1) if batched_masks else None
        self._rows: list[RowControl] = []

    def enlist(self, row: RowControl) -> None:
        """Take `row` as the next row of the coming call."""
        self._rows.append(row)

    def clear(self) -> None:
        """Forget rows whose step raised before it sampled."""
        self._rows.clear()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return the next token of each enlisted row; `logprobs` is [rows, vocabulary]."""
        rows, self._rows = self._rows, []
        if len(rows) != logprobs.shape[0]:
            raise RuntimeError(f"{logprobs.shape[0]} rows to sample, {len(rows)} enlisted")
        return self.choose(logprobs, rows)

    def choose(self, logits: mx.array, rows: Sequence[RowControl]) -> mx.array:
        """Return the next token of each of `rows`; `logits` is [rows, vocabulary], normalised or not."""
        scores = logits
        if any(row.constrained for row in rows):
            # The forward pass runs while the masks are made.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            scores = mx.where(mx.array(self._allowed(rows, logits.shape[1])), logits, -float("inf"))
        warm = [i for i, row in enumerate(rows) if row.temperature > 0]
        if warm:
            scores = _noisy(scores, rows, warm)
        tokens = mx.argmax(scores, axis=-1)
        if self.trace:
            self._keep_trace(rows, logits, scores, tokens)
        for row in rows:
            row.position += 1
        return tokens

    def _allowed(self, rows: Sequence[RowControl], width: int) -> NDArray[np.bool_]:
        words = self._mask_words(rows)
        # A bit of every word stands for a token, least significant first (x86 and ARM are little-endian).
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=min(width, self._words * 32))
        allowed = np.zeros((len(rows), width), dtype=np.bool_)
        allowed[:, : bits.shape[1]] = bits
        # A padded vocabulary has more outputs than the grammar has tokens: only a free row may take those.
        for row, row_allowed in zip(rows, allowed, strict=True):
            if not row.constrained:
                row_allowed[:] = True
        return allowed

    def _mask_words(self, rows: Sequence[RowControl]) -> NDArray[np.int32]:
        words = np.full((len(rows), self._words), -1, dtype=np.int32)
        if self._executor is None:
            for row, row_words in zip(rows, words, strict=True):
                row.fill_mask(row_words)
            return words
        asked = [(row.matcher, i) for i, row in enumerate(rows) if row.needs_mask()]
        if asked:
            self._executor.unsafe_compute_mask_ptr(asked, words.ctypes.data, words.strides[0], len(rows))
        for row, row_words in zip(rows, words, strict=True):
            row.finish_mask(row_words)
        return words

    @staticmethod
    def keep_forced(row: RowControl, logits: mx.array, tokens: Sequence[int]) -> None:
        """Trace `tokens` that were not sampled; `logits`, [tokens, vocabulary], are those that they came by.

        A penalty counts what was said before each, which is not known any more: their log-probabilities are NaN.
        """
        if row.penalises:
            logits = mx.full(logits.shape, float("nan"))
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        row.trace += [(logprobs[i, token], mx.array(float("inf"))) for i, token in enumerate(tokens)]

    @staticmethod
    def _keep_trace(rows: Sequence[RowControl], logits: mx.array, scores: mx.array, tokens: mx.array) -> None:
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        best = mx.sort(scores, axis=-1)[:, -2:]
        leads = best[:, 1] - best[:, 0]
        for i, row in enumerate(rows):
            row.trace.append((chosen[i], leads[i]))


def penalised(logits: mx.array, rows: Sequence[RowControl]) -> mx.array:
    """Return `logits`, [rows, vocabulary] and not normalised, with each row's repetition penalty."""
    if not any(row.penalises for row in rows):
        return logits
    return mx.concatenate([row.penalised(logits[i : i + 1]) for i, row in enumerate(rows)])


def _noisy(scores: mx.array, rows: Sequence[RowControl], warm: list[int]) -> mx.array:
    """Return `scores` with those of the `warm` rows such that their largest is a sample.

    argmax(log p + Gumbel noise) is distributed as p. Temperature comes first, then top-k, then top-p, as in
    transformers and vLLM; what a grammar forbids has a score of -inf already and takes no share of a nucleus.
    """
    chosen = [rows[i] for i in warm]
    some = len(warm) < len(rows)
    scaled = (scores[mx.array(warm)] if some else scores).astype(mx.float32)
    temperatures = mx.array([[max(row.temperature, _MIN_TEMPERATURE)] for row in chosen])
    # The largest becomes 0: nothing overflows at low temperatures, and no row is -inf throughout.
    scaled = (scaled - scaled.max(axis=-1, keepdims=True)) / temperatures
    scaled = _truncated(scaled, chosen)
    width = scaled.shape[1]
    keys = mx.array([row.noise_key() for row in chosen], dtype=mx.uint32)
    scaled += mx.vmap(lambda key: mx.random.gumbel((width,), key=key))(keys)
    if not some:
        return scaled
    merged = scores.astype(mx.float32)
    merged[mx.array(warm)] = scaled
    return merged


def _truncated(scaled: mx.array, rows: Sequence[RowControl]) -> mx.array:
    """Return `scaled` ([rows, vocabulary], divided by temperature) with -inf outside each row's top-k and nucleus."""
    if all(row.top_k <= 0 and row.top_p >= 1.0 for row in rows):
        return scaled
    width = scaled.shape[1]
    limits = [min(row.top_k, width) if row.top_k > 0 else width for row in rows]
    # Below any score where a row has no nucleus: a cumulated share may reach 1 before its end.
    shares = mx.array([[row.top_p if row.top_p < 1.0 else 2.0] for row in rows])
    k = mx.array([[limit] for limit in limits])
    sorted_width = min(width, max(_SORTED_TOKENS, *(limit for limit in limits if limit < width), 1))
    while True:
        best = mx.sort(mx.topk(scaled, sorted_width, axis=-1) if sorted_width < width else scaled, axis=-1)[:, ::-1]
        within = mx.where(mx.arange(sorted_width)[None] < k, best, -float("inf"))
        # The shares are of what top-k left: of everything, where it left everything.
        everything = mx.logsumexp(scaled, axis=-1, keepdims=True)
        total = mx.where(k < width, mx.logsumexp(within, axis=-1, keepdims=True), everything)
        probs = mx.exp(within - total)
        reached = mx.cumsum(probs, axis=-1)
        bounded = (k <= sorted_width) | (reached[:, -1:] >= shares) | (shares > 1.0)
        if sorted_width == width or bool(mx.all(bounded).item()):
            break
        sorted_width = width
    kept = mx.maximum(mx.sum((reached - probs < shares) & (within > -float("inf")), axis=-1, keepdims=True), 1)
    lowest = mx.take_along_axis(best, kept - 1, axis=-1)
    free = (k >= width) & (shares > 1.0)
    return mx.where(free | (scaled >= lowest), scaled, -float("inf"))
