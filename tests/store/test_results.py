"""The store as the event loop sees it: whatever its thread meets, every question is answered."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.store.test_keeper import BOUNDS, MODEL
from vlmd_bridge.store import results as results_module
from vlmd_bridge.store.keeper import Keeper
from vlmd_bridge.store.results import ResultStore
from vlmd_protocol.messages import CacheResult


async def look_around(store: ResultStore, *, clear: bool = False) -> CacheResult:
    """Return what the store says of itself."""
    answers: list[CacheResult] = []
    answered = anyio.Event()

    def answer(result: CacheResult) -> None:
        answers.append(result)
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.run)
        store.info(answer, clear=clear)
        with anyio.fail_after(10):
            await answered.wait()
        tasks.cancel_scope.cancel()
    return answers[0]


@pytest.mark.parametrize("clear", [False, True])
def test_a_path_that_cannot_be_looked_at_is_told_of(tmp_path: Path, clear: bool) -> None:
    async def ask() -> CacheResult:
        store = ResultStore(tmp_path / ("x" * 300) / "results.db", BOUNDS, enabled=True)
        try:
            return await look_around(store, clear=clear)
        finally:
            store.close()

    result = anyio.run(ask)
    assert (result.state, result.entries, result.removed) == ("degraded", None, None)
    assert "too long" in str(result.warning)


def test_no_file_is_made_for_a_look(tmp_path: Path) -> None:
    async def ask() -> list[CacheResult]:
        store = ResultStore(tmp_path / "results.db", BOUNDS, enabled=True)
        try:
            return [await look_around(store), await look_around(store, clear=True)]
        finally:
            store.close()

    assert [(result.entries, result.removed) for result in anyio.run(ask)] == [(0, None), (0, 0)]
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_hangs_is_not_handed_more_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "_MAX_QUEUED", 10)
    monkeypatch.setattr(ResultStore, "_serve", lambda _: None)  # takes nothing

    async def keep() -> int:
        store = ResultStore(tmp_path / "results.db", BOUNDS, enabled=True)
        try:
            for number in range(100):
                store.keep(MODEL, b"%d" % number, b"value")
            return store._work.qsize()
        finally:
            store.close()

    assert anyio.run(keep) == 10


def test_what_is_kept_is_written_at_the_end(tmp_path: Path) -> None:
    async def keep() -> None:
        store = ResultStore(tmp_path / "results.db", BOUNDS, enabled=True)
        for number in range(100):
            store.keep(MODEL, b"%d" % number, b"value")
        store.close()

    anyio.run(keep)
    keeper = Keeper(tmp_path / "results.db", BOUNDS)
    assert keeper.count() == 100
    keeper.close()
