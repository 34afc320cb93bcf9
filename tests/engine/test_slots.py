"""Rows in slots: attention sees each row's own keys, whatever the others append, on either kind of device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmd_bridge.engine.rows.places import SMALL_TOKENS, STEP_TOKENS, Places
from vlmd_bridge.engine.rows.slots import SlotCache, Step, attend

HEADS, KEY_HEADS, SIZE = 6, 2, 8


def _random(rng: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32))


def _random_row(rng: np.random.Generator, length: int) -> list[mx.array]:
    return [_random(rng, 1, KEY_HEADS, length, SIZE) for _ in range(2)]


def _join(cache: SlotCache, places: Places, slot: int, row: list[mx.array]) -> None:
    keys, values = row
    rectangle = places.join(slot, keys.shape[2])
    if rectangle is not None:
        cache.arrange(rectangle, like=(keys, values))
    cache.join(places[slot], keys, values)


def _leave(cache: SlotCache, places: Places, slot: int) -> None:
    rectangle = places.leave(slot)
    if rectangle is not None:
        cache.arrange(rectangle)


def _alone(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask="causal")


@given(
    lengths=st.dictionaries(st.integers(0, 5), st.integers(1, 300), min_size=1, max_size=5),
    runs=st.lists(st.lists(st.integers(1, 4), min_size=6, max_size=6), min_size=1, max_size=3),
    leaving=st.lists(st.integers(0, 5), unique=True),
    flat=st.booleans(),
    metal=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_each_row_attends_to_itself(
    lengths: dict[int, int], runs: list[list[int]], leaving: list[int], flat: bool, metal: bool, seed: int
) -> None:
    """Slots may be free between rows, runs may differ; models that take a row each (not flat) append one token."""
    rng = np.random.default_rng(seed)
    cache, places = SlotCache(), Places()
    history = {}
    for slot, length in lengths.items():
        history[slot] = _random_row(rng, length)
        _join(cache, places, slot, history[slot])
    for slot in [slot for slot in leaving if slot in history][: len(history) - 1]:
        _leave(cache, places, slot)
        del history[slot]
    for counts in runs:
        new_rows = [(slot, history[slot][0].shape[2], counts[slot] if flat else 1) for slot in history]
        rectangle = places.grow((slot, before + count) for slot, before, count in new_rows)
        if rectangle is not None:
            cache.arrange(rectangle)
        appended = [(places[slot], before, count) for slot, before, count in new_rows]
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
        for slot, _, count in new_rows:
            begin, end = end, end + count
            new = (keys[:, :, begin:end], values[:, :, begin:end])
            history[slot] = [mx.concatenate([old, more], axis=2) for old, more in zip(history[slot], new, strict=True)]
            expected = _alone(queries[:, :, begin:end], *history[slot])
            assert np.allclose(np.array(got[:, :, begin:end]), np.array(expected), atol=1e-5)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.one_of(st.integers(1, 400), st.integers(1, 9000))),
            st.tuples(st.just("leave"), st.integers(0, 99)),
            st.tuples(st.just("append"), st.integers(1, 700)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_held_is_bounded_by_the_rows_in_use(steps: list[tuple[str, int]]) -> None:
    """A small constant, or twice the rows times the longest, after any joins, leaves and tokens; keys stay."""
    cache, places = SlotCache(), Places()
    rows: dict[int, list[float]] = {}
    for nth, (what, number) in enumerate(steps):
        slot = sorted(rows)[number % len(rows)] if rows else -1
        if what == "join":
            slot = min(set(range(len(rows) + 1)) - set(rows))
            rows[slot] = [float(nth)] * number
            _join(cache, places, slot, [mx.full((1, 1, number, 1), float(nth))] * 2)
        elif not rows:
            continue
        elif what == "leave":
            del rows[slot]
            if rows:
                _leave(cache, places, slot)
            else:
                places.clear()
                cache.clear()
        else:
            new = [(each, len(rows[each]), number if each == slot else 1) for each in rows]
            rectangle = places.grow((each, before + count) for each, before, count in new)
            if rectangle is not None:
                cache.arrange(rectangle)
            cache.step = Step.of([(places[each], before, count) for each, before, count in new])
            tokens = mx.full((1, 1, sum(count for _, _, count in new), 1), float(nth))
            cache.update_and_fetch(tokens, tokens)
            for each, _, count in new:
                rows[each] += [float(nth)] * count
        longest = max(map(len, rows.values()), default=0)
        assert places.held_tokens <= max(SMALL_TOKENS, 2 * len(rows) * (longest + STEP_TOKENS))
        if not rows:
            continue
        assert cache._keys is not None and cache._values is not None
        assert cache._keys.size == cache._values.size == places.held_tokens
        for each, expected in rows.items():
            assert np.array(cache._keys)[places[each], 0, : len(expected), 0].tolist() == expected


def test_a_long_row_among_short_ones_takes_no_places_besides() -> None:
    places = Places()
    for slot in range(8):
        places.join(slot, 300)
    assert places.held_tokens == 8 * 512
    places.join(8, 20_000)
    assert places.held_tokens == 9 * 20_224
    places.leave(8)
    assert places.held_tokens == 8 * 512
