"""Shared prefixes for mlx-vlm's BatchGenerator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.generate.ar import PromptProcessingBatch

from vlmd_bridge.engine.rows.prefix import Prefix, PrefixIndex

_ALIGNED = ("position_ids", "visual_pos_masks")


class BatchPrefixes(PrefixIndex[list[Any]]):
    """A state is the list of the layers' caches."""

    def state_bytes(self, state: list[Any]) -> int:
        """Sum up the caches' arrays."""
        return sum(array.nbytes for _, array in tree_flatten([cache.state for cache in state]))

    def prompt_batch(self, generator: Any, sequences: Sequence[Any]) -> Any:
        """Return the prefill of the only sequence, begun behind its known prefix, or None to prefill all of it.

        Stands in for `BatchGenerator._build_mixed_prompt_batch`, where mlx-vlm looks up a cache of its own.
        """
        if len(sequences) != 1:
            return None
        uid, token_ids, max_tokens, inputs, processors, _ = sequences[0]
        prefix = self.find(token_ids, lambda length, known: _computed(generator, token_ids, inputs, length, known))
        if prefix is None:
            return None
        length = len(prefix.token_ids)
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
            warm_cache=copy.deepcopy(prefix.state),
        )


def _computed(
    generator: Any, token_ids: Sequence[int], inputs: Mapping[str, Any], length: int, known: Prefix[list[Any]] | None
) -> list[Any]:
    text = {k: v for k, v in inputs.items() if k in ("position_ids", "rope_deltas")}
    start = 0 if known is None else len(known.token_ids)
    batch = PromptProcessingBatch(
        model=generator.model,
        uids=[-1],
        # A prefill leaves the last token to be sampled behind: with one more, it is just the prefix.
        input_ids=[list(token_ids[start : length + 1])],
        max_tokens=[1],
        inputs_embeds=inputs["inputs_embeds"][:, start : length + 1],
        prompt_kwargs=_sliced(text, start, length + 1),
        prefill_step_size=generator.prefill_step_size,
        warm_cache=None if known is None else copy.deepcopy(known.state),
    )
    processed = batch.prompt_step()
    if processed != length - start:
        raise RuntimeError(f"prefilled {processed} tokens of a prefix of {length - start}")
    mx.eval([cache.state for cache in batch.prompt_cache])
    caches: list[Any] = batch.prompt_cache
    return caches


def _sliced(inputs: Mapping[str, Any], start: int, stop: int | None) -> dict[str, Any]:
    """Return the model's keyword arguments for the tokens from `start` to `stop`."""
    return {
        name: _cut(name, value, start, stop) if name in _ALIGNED else value
        for name, value in inputs.items()
        if name != "inputs_embeds"
    }


def _cut(name: str, value: mx.array, start: int, stop: int | None) -> mx.array:
    """Cut along the tokens: [3, rows, tokens] of positions, else [rows, tokens, …], as mlx-vlm tells them apart."""
    if name == "position_ids" and value.ndim == 3 and value.shape[0] == 3:
        return value[:, :, start:stop]
    return value[:, start:stop]
