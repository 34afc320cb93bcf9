"""The store's file: what is kept, for how long, how much of it, and that it is nobody else's."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from vlmd_bridge.store.bounds import DAY_S, Bounds
from vlmd_bridge.store.file import StoreFile
from vlmd_bridge.store.setting_aside import checked_identity

MIB = 1024 * 1024
BOUNDS = Bounds(max_bytes=64 * MIB, max_age_s=30 * DAY_S)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_was_put_is_there_also_for_the_next_and_for_a_second_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.db"
    one, other = StoreFile(path, BOUNDS), StoreFile(path, BOUNDS)
    one.put([(b"k1", b"v1"), (b"k2", b"v2")])
    other.put([(b"k2", b"again")])
    assert (one.get(b"k1"), one.get(b"k2"), one.get(b"k3")) == (b"v1", b"again", None)
    one.close()
    assert (other.get(b"k1"), other.count()) == (b"v1", 2)
    other.close()
    assert StoreFile(path, BOUNDS).get(b"k2") == b"again"


@pytest.mark.parametrize("statement", range(1, 6))
def test_a_file_that_another_process_is_making_is_not_taken_for_a_stranger_s(tmp_path: Path, statement: int) -> None:
    path = tmp_path / "results.db"
    db = sqlite3.connect(path, isolation_level=None)
    seen: list[str] = []

    def make(text: str) -> None:
        seen.append(text)
        if len(seen) == statement:
            with contextlib.suppress(sqlite3.OperationalError):  # locked: then it comes later
                StoreFile(path, BOUNDS).close()

    db.set_trace_callback(make)
    checked_identity(db)
    db.close()
    assert seen


def test_while_it_is_made_it_is_empty_or_ours_for_whoever_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.db"
    marks: set[bytes] = set()
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **options)
        db.set_trace_callback(lambda _: marks.add(path.read_bytes()[68:72]))
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    StoreFile(path, BOUNDS).put([(b"k", b"v")])
    assert marks == {b"", b"vlmd"}


def test_every_file_of_it_is_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.db"
    file = StoreFile(path, BOUNDS)
    file.put([(b"k", b"v")])
    for found in path.parent.iterdir():
        assert stat.S_IMODE(found.stat().st_mode) == 0o600, found
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    StoreFile(path, BOUNDS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_cleared_is_gone_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    file = StoreFile(path, BOUNDS)
    secret = b"a very particular description"
    file.put([(bytes([i]), secret + b"." * 3000) for i in range(200)])
    file.put([(b"\0", b"replaced")])
    assert any(secret in part.read_bytes() for part in tmp_path.iterdir())
    assert file.clear() == 200
    assert not any(secret in part.read_bytes() for part in tmp_path.iterdir())
    assert path.stat().st_size < 64 * 1024
    assert file.get(b"\1") is None


def test_the_bound_holds_and_what_was_used_stays(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "results.db"
    file = StoreFile(path, Bounds(max_bytes=MIB, max_age_s=DAY_S), now_s=clock)
    for i in range(1000):
        clock.now_s += 5
        file.put([(i.to_bytes(4, "big"), b"x" * 4000)])
        if i % 100 == 99:
            clock.now_s += 4000  # a hit is noted once an hour
            assert file.get(bytes(4)) is not None, i
            file.evict()
            assert path.stat().st_size < 1.3 * MIB
    assert file.get((999).to_bytes(4, "big")) is not None
    assert file.get((1).to_bytes(4, "big")) is None


def test_what_was_not_used_for_long_is_not_found_and_removed(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "results.db"
    file = StoreFile(path, BOUNDS, now_s=clock)
    file.put([(b"old", b"v"), (b"used", b"v")])
    clock.now_s += 20 * DAY_S
    assert file.get(b"used") == b"v"
    clock.now_s += 20 * DAY_S
    assert (file.get(b"old"), file.get(b"used")) == (None, b"v")
    file.close()
    assert StoreFile(path, BOUNDS, now_s=clock).count() == 1


def test_a_value_that_is_not_what_was_written_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    file = StoreFile(path, BOUNDS)
    file.put([(b"k", b"the right text"), (b"other", b"another text")])
    by_hand = sqlite3.connect(path)
    by_hand.execute("UPDATE results SET value=(SELECT value FROM results WHERE key=?) WHERE key=?", (b"other", b"k"))
    by_hand.commit()
    with pytest.raises(sqlite3.DatabaseError):
        file.get(b"k")
    by_hand.execute("UPDATE results SET value='text' WHERE key=?", (b"k",))
    by_hand.commit()
    with pytest.raises(sqlite3.DatabaseError):
        file.get(b"k")
    by_hand.close()
