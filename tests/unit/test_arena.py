"""The arena: ranges never overlap, and what is written through one mapping is read through another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmd_bridge.workers.arena import Arena, ArenaFull, map_arena

_SIZE_BYTES = 1024 * 1024


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(_SIZE_BYTES)
    yield arena
    arena.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=40))
def test_ranges_never_overlap_and_come_back(steps: list[tuple[bool, int]]) -> None:
    arena = Arena(_SIZE_BYTES)
    try:
        held: dict[int, int] = {}
        for give_back, size in steps:
            if give_back and held:
                offset = next(iter(held))
                arena.give_back(offset)
                del held[offset]
                continue
            try:
                offset = arena.take(size)
            except ArenaFull:
                continue
            assert offset + size <= _SIZE_BYTES
            assert all(offset + size <= other or other + length <= offset for other, length in held.items())
            held[offset] = size
        for offset in held:
            arena.give_back(offset)
        assert arena.take(_SIZE_BYTES) == 0
    finally:
        arena.close()


def test_all_or_nothing(arena: Arena) -> None:
    assert arena.take_many([400_000] * 3) is None
    assert arena.taken == 0
    assert arena.take_many([400_000] * 2) is not None


def test_a_range_is_given_back_once(arena: Arena) -> None:
    offset = arena.take(10)
    arena.give_back(offset)
    with pytest.raises(ValueError, match="no range"):
        arena.give_back(offset)


def test_mappings_share_their_bytes(arena: Arena) -> None:
    with map_arena(arena.fd, writable=True) as writer, map_arena(arena.fd, writable=False) as reader:
        offset = arena.take(4)
        writer[offset : offset + 4] = b"RGBA"
        assert reader[offset : offset + 4] == b"RGBA"
