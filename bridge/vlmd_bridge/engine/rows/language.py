"""A language model of mlx-vlm as our decode loop uses it: prefill a row, decode rows together.

Positions are always passed, so that nothing is read from what the model keeps of its last prompt, and the output
layer is run on the last token of each row only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import ArraysCache, KVCache

from vlmd_bridge.engine.rows.places import Places, Rectangle
from vlmd_bridge.engine.rows.slots import RowCache, SlotCache, Step, use_slots

# Architectures for which the correctness gate compares this with rows alone.
SUPPORTED = frozenset({"qwen3_vl", "qwen2_5_vl", "qwen3_5"})


class RowState:
    """What one row has in the layers after its prefill: `RowCache`s, or states where a layer is recurrent."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

    def copy(self) -> RowState:
        """Return another that goes on from here, sharing the arrays."""
        return RowState([layer.copy() if isinstance(layer, RowCache) else _copied(layer) for layer in self.layers])

    def arrays(self) -> list[mx.array]:
        """Return all arrays of it."""
        return [array for layer in self.layers for array in layer.state]


class Language:
    """Prefills and decodes. Rows are told by their slot; recurrent states are kept in the order of joining."""

    def __init__(self, language_model: Any) -> None:
        self.model = language_model
        self._model = language_model.model
        self._head = _head_of(language_model)
        # Of what flows between the layers.
        self.dtype: mx.Dtype = language_model.model.norm.weight.dtype
        self.hidden_size = int(language_model.args.hidden_size)
        self._make_cache = getattr(language_model, "make_cache", lambda: [KVCache() for _ in language_model.layers])
        self._takes_pictures = "visual_pos_masks" in inspect.signature(type(self._model).__call__).parameters
        kinds = {type(layer) for layer in self._make_cache()}
        if not kinds <= {KVCache, ArraysCache}:
            raise ValueError(f"no batch of {', '.join(sorted(kind.__name__ for kind in kinds))}")
        # Whether all that a row leaves behind is keys and values: only then may rows append unlike numbers of tokens.
        self.plain = kinds == {KVCache}
        self._layers: list[Any] = [SlotCache() if isinstance(c, KVCache) else c for c in self._make_cache()]
        self._order: list[int] = []
        self._places = Places()
        use_slots(language_model)

    def begin(self) -> RowState:
        """Return the state of a row of which nothing is prefilled."""
        return RowState([RowCache() if isinstance(c, KVCache) else c for c in self._make_cache()])

    def prefill(
        self, state: RowState, token_ids: Sequence[int], inputs: Mapping[str, Any], start: int, every: bool = False
    ) -> mx.array:
        """Append to `state` the tokens from `start` on, and return the logits behind the last one, [1, vocabulary].

        `inputs` are of the prompt; tokens that go on behind it are text. With `every`, the logits of all tokens.
        """
        embeds = inputs["inputs_embeds"]
        prompt_length = embeds.shape[1]
        stop = min(prompt_length, len(token_ids))
        embeds = embeds[:, start:stop]
        positions = inputs["position_ids"][..., start:stop]
        visible = inputs.get("visual_pos_masks") if self._takes_pictures else None
        visible = None if visible is None else visible[:, start:stop]
        behind = token_ids[prompt_length:]
        if behind:
            embeds = mx.concatenate([embeds, self._model.embed_tokens(mx.array([behind]))], axis=1)
            first = prompt_length + rope_delta(inputs)
            more = mx.arange(first, first + len(behind), dtype=positions.dtype)
            more = mx.broadcast_to(more, (*positions.shape[:-1], len(behind)))
            positions = mx.concatenate([positions, more], axis=-1)
            if visible is not None:
                visible = mx.concatenate([visible, mx.zeros((1, len(behind)), dtype=visible.dtype)], axis=1)
        pictures = {}
        if visible is not None and inputs.get("deepstack_visual_embeds") is not None:
            pictures = {
                "visual_pos_masks": visible,
                "deepstack_visual_embeds": inputs["deepstack_visual_embeds"],
            }
        hidden = self._model(
            mx.array([token_ids[start:]]),
            inputs_embeds=embeds,
            cache=state.layers,
            position_ids=positions,
            **pictures,
        )
        logits: mx.array = self._head(hidden[0] if every else hidden[:, -1])
        return logits

    def join(self, slot: int, state: RowState) -> None:
        """Take a prefilled row into `slot`, which is free."""
        self._order.append(slot)
        length = max((row.offset for row in state.layers if isinstance(row, RowCache)), default=0)
        rectangle = self._places.join(slot, length)
        for layer, row in zip(self._layers, state.layers, strict=True):
            if isinstance(layer, SlotCache):
                if rectangle is not None:
                    layer.arrange(rectangle, like=(row.keys, row.values))
                layer.join(self._places[slot], row.keys, row.values)
            elif len(self._order) == 1:
                layer.cache = list(row.cache)
            else:
                layer.cache = [mx.concatenate([ours, new]) for ours, new in zip(layer.cache, row.cache, strict=True)]

    def leave(self, slot: int) -> None:
        """Let the row in `slot` go."""
        at = self._order.index(slot)
        del self._order[at]
        if not self._order:
            self.clear()
            return
        self._arrange(self._places.leave(slot))
        if not self.plain:
            kept = mx.array([i for i in range(len(self._order) + 1) if i != at])
            for layer in self._layers:
                if not isinstance(layer, SlotCache):
                    layer.cache = [state[kept] for state in layer.cache]

    def decode(self, tokens: mx.array, rows: Sequence[tuple[int, int, int, int]], every: bool = False) -> mx.array:
        """Append `tokens` ([tokens], those of a row together) and return the logits behind each row's last one.

        Each of `rows` is (slot, length before, number of tokens, distance of its positions from the lengths), all
        that have joined, in that order. With `every`, the logits behind all tokens.
        """
        self._arrange(self._places.grow((slot, before + count) for slot, before, count, _ in rows))
        step = Step.of([(self._places[slot], before, count) for slot, before, count, _ in rows])
        positions = np.concatenate(
            [np.arange(before + delta, before + delta + count, dtype=np.int32) for _, before, count, delta in rows]
        )
        for layer in self._layers:
            if isinstance(layer, SlotCache):
                layer.step = step
        shape = (1, -1) if self.plain else (-1, 1)
        position_ids = mx.broadcast_to(mx.array(positions).reshape(shape)[None], (3, *tokens.reshape(shape).shape))
        hidden = self._model(tokens.reshape(shape), cache=self._layers, position_ids=position_ids)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if not every and len(positions) > len(rows):
            hidden = hidden[mx.array(np.cumsum([count for _, _, count, _ in rows]) - 1)]
        logits: mx.array = self._head(hidden)
        return logits

    @property
    def held_tokens(self) -> int:
        """Tokens of rows that there is memory for."""
        return self._places.held_tokens

    def states(self) -> list[mx.array]:
        """Return the recurrent states, which a step's tokens do not depend on."""
        return [state for layer in self._layers if not isinstance(layer, SlotCache) for state in layer.cache]

    def clear(self) -> None:
        """Give the memory of all rows back."""
        self._order.clear()
        self._places.clear()
        for layer in self._layers:
            if isinstance(layer, SlotCache):
                layer.clear()
            else:
                layer.cache = [None] * len(layer.cache)

    def _arrange(self, rectangle: Rectangle | None) -> None:
        for layer in self._layers:
            if rectangle is not None and isinstance(layer, SlotCache):
                layer.arrange(rectangle)


def rope_delta(inputs: Mapping[str, Any]) -> int:
    """Return how far the positions behind a prompt are from its length: a picture counts by its sides."""
    return int(inputs["rope_deltas"].item())


def _head_of(language_model: Any) -> Any:
    if language_model.args.tie_word_embeddings:
        return language_model.model.embed_tokens.as_linear
    return language_model.lm_head


def _copied(layer: ArraysCache) -> ArraysCache:
    twin = ArraysCache(len(layer.cache))
    twin.cache = list(layer.cache)
    return twin
