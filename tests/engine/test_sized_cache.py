"""What is kept is bounded by its bytes."""

from __future__ import annotations

from vlmd_bridge.engine.pictures.sized_cache import SizedCache


def test_a_cache_of_tables_is_bounded_by_bytes() -> None:
    made: list[int] = []

    def make(size: int) -> bytes:
        made.append(size)
        return bytes(size)

    cache = SizedCache(make, len, 100)
    for size in (40, 50, 40, 30):  # 50 is the oldest then
        assert len(cache(size)) == size
    assert cache.held_bytes == 70 and made == [40, 50, 30]
    assert len(cache(500)) == len(cache(500)) == cache.held_bytes == 500
    assert len(cache(40)) == cache.held_bytes == 40
    assert made == [40, 50, 30, 500, 40]
