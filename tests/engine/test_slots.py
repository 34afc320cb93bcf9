"""Rows in slots: attention sees each row's own keys, whatever the others append, on either kind of device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmd_bridge.engine.slots import SlotCache, Step, attend

HEADS, KEY_HEADS, SIZE = 6, 2, 8


def _random(rng: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32))


def _alone(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask="causal")


@given(
    lengths=st.dictionaries(st.integers(0, 5), st.integers(1, 300), min_size=1, max_size=5),
    runs=st.lists(st.lists(st.integers(1, 4), min_size=6, max_size=6), min_size=1, max_size=3),
    flat=st.booleans(),
    metal=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_each_row_attends_to_itself(
    lengths: dict[int, int], runs: list[list[int]], flat: bool, metal: bool, seed: int
) -> None:
    """Slots may be free between rows, runs may differ; models that take a row each (not flat) append one token."""
    rng = np.random.default_rng(seed)
    cache = SlotCache()
    history = {}
    for slot, length in lengths.items():
        history[slot] = [_random(rng, 1, KEY_HEADS, length, SIZE) for _ in range(2)]
        cache.join(slot, *history[slot])
    for counts in runs:
        appended = [(slot, history[slot][0].shape[2], counts[slot] if flat else 1) for slot in history]
        queries, keys, values = (
            _random(rng, 1, heads, sum(count for _, _, count in appended), SIZE)
            for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        )
        cache.step = Step.of(appended)
        shaped = [queries, keys, values] if flat else [array.transpose(2, 1, 0, 3) for array in (queries, keys, values)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mx.metal, "is_available", lambda: metal)
            got = attend(shaped[0], *cache.update_and_fetch(shaped[1], shaped[2]), cache.step, 0.3)
        if not flat:
            got = got.transpose(2, 1, 0, 3)
        end = 0
        for slot, _, count in appended:
            begin, end = end, end + count
            new = (keys[:, :, begin:end], values[:, :, begin:end])
            history[slot] = [mx.concatenate([old, more], axis=2) for old, more in zip(history[slot], new, strict=True)]
            expected = _alone(queries[:, :, begin:end], *history[slot])
            assert np.allclose(np.array(got[:, :, begin:end]), np.array(expected), atol=1e-5)
