"""Shares the prefill of the text with which prompts begin: the same instructions before every frame.

mlx-vlm's own prefix cache never hits here, since its key covers a prompt's image. What is computed here is what the
language model would compute: the keys and values of text tokens do not depend on an image behind them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import mlx.core as mx
from mlx_vlm.generate.ar import PromptProcessingBatch

# Architectures for which the correctness gate compares rows with a shared prefix to rows without.
SUPPORTED = frozenset({"qwen3_vl", "qwen2_5_vl", "qwen3_5"})

# Below this a copy of the cache costs as much as the prefill that it saves.
_MIN_TOKENS = 32

# One for each prompt in use; a job's labels may add one that is a little longer (``Frame (timestamp: 1``).
_KEPT = 4

_ALIGNED = ("position_ids", "visual_pos_masks")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prefix:
    token_ids: tuple[int, ...]
    caches: list[Any]


class PrefixCache:
    """Keeps the caches of prefixes that two prompts in a row had in common."""

    def __init__(self, image_token_ids: frozenset[int]) -> None:
        self._image_token_ids = image_token_ids
        self._last: Sequence[int] = ()
        self._prefixes: OrderedDict[tuple[int, ...], _Prefix] = OrderedDict()
        # Prompt tokens that were not computed again.
        self.saved_tokens = 0

    def clear(self) -> None:
        """Give the memory back."""
        self._prefixes.clear()
        self._last = ()

    def prompt_batch(self, generator: Any, sequences: Sequence[Any]) -> Any:
        """Return the prefill of the only sequence, begun behind its known prefix, or None to prefill all of it.

        Stands in for `BatchGenerator._build_mixed_prompt_batch`, where mlx-vlm looks up a cache of its own.
        """
        if len(sequences) != 1:
            return None
        uid, token_ids, max_tokens, inputs, processors, _ = sequences[0]
        prefix = self._find(generator, token_ids, inputs)
        if prefix is None:
            return None
        length = len(prefix.token_ids)
        self.saved_tokens += length
        return PromptProcessingBatch(
            model=generator.model,
            uids=[uid],
            input_ids=[token_ids[length:]],
            max_tokens=[max_tokens],
            inputs_embeds=inputs["inputs_embeds"][:, length:],
            prompt_kwargs=_sliced(inputs, length, None),
            logits_processors=[processors],
            thinking_budget_criteria=[None],
            prefill_step_size=generator.prefill_step_size,
            warm_cache=copy.deepcopy(prefix.caches),
        )

    def _find(self, generator: Any, token_ids: Sequence[int], inputs: Mapping[str, Any]) -> _Prefix | None:
        last, self._last = self._last, token_ids
        known = [p for p in self._prefixes.values() if tuple(token_ids[: len(p.token_ids)]) == p.token_ids]
        if known:
            longest = max(known, key=lambda prefix: len(prefix.token_ids))
            self._prefixes.move_to_end(longest.token_ids)
            return longest
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(token_ids, last, strict=False)))
        # Image tokens are alike for every image: only text before the first one is the same in both prompts. At
        # least two tokens must be left, one to prefill and one to sample behind.
        image_at = next((i for i, token in enumerate(token_ids) if token in self._image_token_ids), len(token_ids))
        shared = min(shared, image_at, len(token_ids) - 2)
        return self._compute(generator, token_ids, inputs, shared) if shared >= _MIN_TOKENS else None

    def _compute(self, generator: Any, token_ids: Sequence[int], inputs: Mapping[str, Any], length: int) -> _Prefix:
        text = {k: v for k, v in inputs.items() if k in ("position_ids", "rope_deltas")}
        batch = PromptProcessingBatch(
            model=generator.model,
            uids=[-1],
            # A prefill leaves the last token to be sampled behind: with one more, it is just the prefix.
            input_ids=[list(token_ids[: length + 1])],
            max_tokens=[1],
            inputs_embeds=inputs["inputs_embeds"][:, : length + 1],
            prompt_kwargs=_sliced(text, 0, length + 1),
            prefill_step_size=generator.prefill_step_size,
        )
        processed = batch.prompt_step()
        if processed != length:
            raise RuntimeError(f"prefilled {processed} tokens of a prefix of {length}")
        mx.eval([cache.state for cache in batch.prompt_cache])
        prefix = _Prefix(token_ids=tuple(token_ids[:length]), caches=batch.prompt_cache)
        self._prefixes[prefix.token_ids] = prefix
        if len(self._prefixes) > _KEPT:
            self._prefixes.popitem(last=False)
        # The row that it was computed for saves nothing.
        self.saved_tokens -= length
        return prefix


def _sliced(inputs: Mapping[str, Any], start: int, stop: int | None) -> dict[str, Any]:
    """Return the model's keyword arguments for the tokens from `start` to `stop`."""
    return {
        name: value[..., start:stop] if name in _ALIGNED else value
        for name, value in inputs.items()
        if name != "inputs_embeds"
    }
