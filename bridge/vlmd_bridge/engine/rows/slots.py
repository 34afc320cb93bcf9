"""Keys and values of the rows of a batch: a slot each, written where the row's own text ends.

Rows need no padding to a common end, so that one may append several tokens while another appends one: the linear
layers of a step see exactly the tokens that are new, whosever they are. Joining writes one row's keys and values,
leaving writes nothing; `Places` says when the arrays are made anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache
from numpy.typing import NDArray

from vlmd_bridge.engine.rows.places import Rectangle

# The name by which mlx-vlm's models call attention.
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Where the new tokens of one step belong, for every layer alike. Slots are told by their place in the arrays.

    Attributes:
        rows: slot of each token, [tokens].
        ends: position of each token in its slot, [tokens].
        slots: the slots in use end here.
        length: the longest row, with its new tokens.
        columns: how many tokens of one slot stand side by side in attention.
        mask: which keys a query may see, [slots, 1, columns, length].
        queries: token at each place of attention's [slots * columns]; None where token i is the only one of slot i.
        places: place of each token in that; None as above.
    """

    rows: mx.array
    ends: mx.array
    slots: int
    length: int
    columns: int
    mask: mx.array
    queries: mx.array | None
    places: mx.array | None

    @classmethod
    def of(cls, appended: Sequence[tuple[int, int, int]]) -> Step:
        """Return the step in which each (slot, length before, tokens) of `appended` appends its tokens.

        Attention alone pads: to the most tokens that a row appends, and to slots that are free between others.
        """
        slots = 1 + max(slot for slot, _, _ in appended)
        rows = np.concatenate([np.full(count, slot) for slot, _, count in appended])
        nth = np.concatenate([np.arange(count) for _, _, count in appended])
        ends = np.concatenate([np.arange(before, before + count) for _, before, count in appended])
        columns = int(nth.max()) + 1
        places = rows * columns + nth
        size = slots * columns
        # Slots between rows, and places behind a row's last token, see one key: a softmax of nothing would be NaN.
        seen = np.zeros(size, dtype=np.int32)
        seen[places] = ends
        queries = np.zeros(size, dtype=np.int32)
        queries[places] = np.arange(len(places))
        plain = len(places) == size and bool((queries == np.arange(size)).all())
        length = int(ends.max()) + 1
        return cls(
            rows=_indices(rows),
            ends=_indices(ends),
            slots=slots,
            length=length,
            columns=columns,
            mask=mx.arange(length) <= mx.array(seen).reshape(-1, 1, columns, 1),
            queries=None if plain else _indices(queries),
            places=None if plain else _indices(places),
        )


def _indices(values: NDArray[np.integer[Any]]) -> mx.array:
    return mx.array(values.astype(np.int32))


class SlotCache:
    """One layer's keys and values, [slots, heads, tokens, size]. `step` is set before each forward pass.

    It stands where a model of mlx-vlm expects a cache; its attention goes through `attend`.
    """

    def __init__(self) -> None:
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self.step: Step | None = None

    @property
    def offset(self) -> int:
        """Keys before this step, of the longest row: what some models cut their mask by."""
        assert self.step is not None
        return self.step.length - 1

    def make_mask(self, *_: object, **__: object) -> mx.array:
        """Return the step's mask, whatever the model thinks of its tokens."""
        assert self.step is not None
        return self.step.mask

    def arrange(self, rectangle: Rectangle, like: tuple[mx.array, mx.array] | None = None) -> None:
        """Make the arrays anew as `rectangle` says; where there are none yet, for rows `like` these."""
        if self._keys is None or self._values is None:
            assert like is not None
            self._keys, self._values = (_arranged(array[:0], rectangle) for array in like)
        else:
            self._keys, self._values = _arranged(self._keys, rectangle), _arranged(self._values, rectangle)

    def join(self, place: int, keys: mx.array, values: mx.array) -> None:
        """Write the keys and values of a prefilled row, [1, heads, tokens, size], where there is room for them."""
        assert self._keys is not None and self._values is not None
        length = keys.shape[2]
        self._keys[place : place + 1, :, :length] = keys
        self._values[place : place + 1, :, :length] = values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the step's keys and values, and return those of all slots.

        What is new is [1, heads, tokens, size], or [tokens, heads, 1, size] from models that take a row for each.
        """
        step = self.step
        assert step is not None and self._keys is not None and self._values is not None
        self._keys[step.rows, :, step.ends] = _by_token(keys)
        self._values[step.rows, :, step.ends] = _by_token(values)
        return self._keys[: step.slots, :, : step.length], self._values[: step.slots, :, : step.length]

    def clear(self) -> None:
        """Give the memory back."""
        self._keys = self._values = self.step = None


class RowCache(KVCache):  # type: ignore[misc]
    """One layer's keys and values of a row while it is prefilled, behind those of a prefix that it shares."""

    keys: mx.array | None
    values: mx.array | None
    offset: int

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append."""
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        self.offset = keys.shape[2]
        return keys, values

    def copy(self) -> RowCache:
        """Return another that goes on from here; arrays do not change, so both may hold the same ones."""
        twin = RowCache()
        twin.keys, twin.values, twin.offset = self.keys, self.values, self.offset
        return twin


def use_slots(language_model: Any) -> None:
    """Have the attention of `language_model` go through `attend` where its cache is a `SlotCache`."""
    module = sys.modules[type(language_model).__module__]
    original = getattr(module, _ATTENTION)
    if getattr(original, "slots", False):
        return

    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **options: Any
    ) -> mx.array:
        if isinstance(cache, SlotCache):
            assert cache.step is not None
            return attend(queries, keys, values, cache.step, scale)
        result: mx.array = original(queries, keys, values, cache, scale=scale, mask=mask, **options)
        return result

    attention.slots = True  # type: ignore[attr-defined]
    setattr(module, _ATTENTION, attention)


def attend(queries: mx.array, keys: mx.array, values: mx.array, step: Step, scale: float) -> mx.array:
    """Return the attention of the step's tokens, each to its own slot; shapes as in `SlotCache.update_and_fetch`."""
    flat = queries.shape[0] == 1
    placed = _by_token(queries)
    if step.queries is not None:
        placed = placed[step.queries]
    if step.columns > 1:
        heads, size = placed.shape[1:]
        placed = placed.reshape(-1, step.columns, heads, size).transpose(0, 2, 1, 3)
        out = mx.fast.scaled_dot_product_attention(placed, keys, values, scale=scale, mask=step.mask)
        out = out.transpose(0, 2, 1, 3).reshape(-1, heads, size)
    else:
        out = _attend_single(placed, keys, values, scale, step.mask)
    if step.places is not None:
        out = out[step.places]
    return out.swapaxes(0, 1)[None] if flat else out[:, :, None]


def _attend_single(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Return the attention of one query a slot, [slots, heads, size]."""
    slots, heads, size = queries.shape
    # Without Metal, heads that share keys are rows of one matrix product. Its kernel for single queries knows them.
    shape = (slots, heads, 1, size) if mx.metal.is_available() else (slots, keys.shape[1], heads // keys.shape[1], size)
    out = mx.fast.scaled_dot_product_attention(queries.reshape(shape), keys, values, scale=scale, mask=mask)
    return out.reshape(slots, heads, size)


def _by_token(array: mx.array) -> mx.array:
    """Return [tokens, heads, size] of either of the two shapes."""
    return array[0].swapaxes(0, 1) if array.shape[0] == 1 else array[:, :, 0]


def _arranged(array: mx.array, rectangle: Rectangle) -> mx.array:
    kept, room = len(rectangle.kept), min(array.shape[2], rectangle.room)
    # Zeros and not what lay there: attention multiplies what is masked by 0. A view would hold the old array.
    anew = mx.zeros((rectangle.count, array.shape[1], rectangle.room, array.shape[3]), dtype=array.dtype)
    if kept:
        in_order = rectangle.kept == tuple(range(kept))
        rows = array[:kept] if in_order else array[mx.array(rectangle.kept)]
        anew[:kept, :, :room] = rows[:, :, :room]
    return anew
