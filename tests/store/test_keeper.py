"""Whatever is wrong with the file: nothing raises, nothing false is read, and there is a reason for people."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmd_bridge.models.fingerprint import FileStamp, hash_file
from vlmd_bridge.store import identity
from vlmd_bridge.store import keeper as keeper_module
from vlmd_bridge.store.bounds import DAY_S, Bounds
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.store.keeper import Keeper
from vlmd_bridge.workers.messages import ConfigureEngine

BOUNDS = Bounds(max_bytes=64 * 1024 * 1024, max_age_s=30 * DAY_S)
MODEL = ModelIdentity(ConfigureEngine(backend="fake", name="fake", path=""))


def value_of(key: bytes) -> bytes:
    return key * 40


def fill(path: Path, count: int = 300) -> list[bytes]:
    keys = [f"request {i}".encode() for i in range(count)]
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, key, value_of(key)) for key in keys])
    assert keeper.state == "ready"
    keeper.close()
    return keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What passes by itself is tried again at once."""
    monkeypatch.setattr(keeper_module, "_REST_S", 0.0)
    yield


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_never_read_as_a_result(path: Path, seed: int) -> None:
    keys = fill(path)
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    if seed % 4 == 0:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 20, 400))):
            start = 0 if seed % 4 == 1 else rng.randrange(len(data))
            data[min(len(data) - 1, start + rng.randrange(100))] ^= rng.randrange(1, 256)
    path.write_bytes(data)
    keeper = Keeper(path, BOUNDS)
    for key in keys:
        assert keeper.get(MODEL, key) in (None, value_of(key))
    keeper.put([(MODEL, b"new", b"new")])
    keeper.close()
    if keeper.state == "ready":
        again = Keeper(path, BOUNDS)
        assert again.get(MODEL, b"new") == b"new"
        again.close()
    else:
        assert keeper.warning is not None


def test_a_damaged_store_is_set_aside_with_a_warning(path: Path) -> None:
    keys = fill(path)
    path.write_bytes(path.read_bytes()[:8192] + os.urandom(20_000))
    keeper = Keeper(path, BOUNDS)
    assert [keeper.get(MODEL, key) for key in keys].count(None) > 0
    assert "damaged" in str(keeper.warning)
    assert path.with_name("results.db.damaged").exists()
    keeper.put([(MODEL, b"new", b"new")])
    assert (keeper.state, keeper.get(MODEL, b"new")) == ("ready", b"new")
    assert keeper.clear() == 1
    assert not path.with_name("results.db.damaged").exists()


def test_of_two_that_meet_damage_one_sets_the_file_aside(path: Path) -> None:
    fill(path)
    one, other = Keeper(path, BOUNDS), Keeper(path, BOUNDS)
    assert (one.count(), other.count()) == (300, 300)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    for keeper in (one, other):
        for i in range(400):
            keeper.get(MODEL, f"request {i}".encode())
        keeper.put([(MODEL, b"new", b"new")])
    assert one.get(MODEL, b"new") == other.get(MODEL, b"new") == b"new"
    assert one.count() == other.count() == 1
    one.close()
    other.close()


def test_a_file_of_another_program_or_a_newer_version_is_left_alone(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.commit()
    foreign.close()
    before = path.read_bytes()
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, b"k", b"v")])
    assert keeper.state == "off"
    assert "another program" in str(keeper.warning)
    assert path.read_bytes() == before
    path.unlink()
    fill(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=99")
    newer.close()
    keeper = Keeper(path, BOUNDS)
    assert keeper.get(MODEL, b"request 1") is None
    assert keeper.state == "off"
    assert "newer" in str(keeper.warning)


@pytest.mark.parametrize("content", [b"my notes\n", bytes(5000), b"SQLite format 2\0" * 300, b"SQL"])
def test_a_file_that_is_no_database_keeps_its_name_mode_and_content(path: Path, content: bytes) -> None:
    aside = path.with_name("results.db.damaged")
    for file in (path, aside):
        file.write_bytes(content)
        file.chmod(0o644)
    keeper = Keeper(path, BOUNDS)
    assert (keeper.count(), keeper.clear()) == (None, None)
    keeper.put([(MODEL, b"k", b"v")])
    keeper.close()
    assert keeper.state == "off"
    assert "choose another path" in str(keeper.warning)
    for file in (path, aside):
        assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (content, 0o644)
    assert set(path.parent.iterdir()) == {path, aside}


def test_a_damaged_database_of_another_program_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        foreign.executescript("CREATE TABLE theirs (x)")
    path.write_bytes(path.read_bytes()[:100] + os.urandom(4000))
    path.chmod(0o644)
    before = path.read_bytes()
    keeper = Keeper(path, BOUNDS)
    assert keeper.clear() is None
    assert "another program" in str(keeper.warning)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (before, 0o644)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_written_over_while_it_was_open_is_left_alone(path: Path) -> None:
    keys = fill(path)
    keeper = Keeper(path, BOUNDS)
    assert keeper.get(MODEL, keys[0]) == value_of(keys[0])
    path.write_bytes(b"my notes\n" * 9000)
    for key in keys:  # more pages than SQLite has in memory by now
        assert keeper.get(MODEL, key) in (None, value_of(key))
    assert keeper.state == "off"
    assert path.read_bytes().startswith(b"my notes\n")
    assert not path.with_name("results.db.damaged").exists()


def test_a_file_that_was_removed_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_EVICT_EVERY", 4)
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, b"0", b"value")])
    for file in path.parent.iterdir():
        file.unlink()
    for number in range(1, 9):
        keeper.put([(MODEL, b"%d" % number, b"value")])
    assert (keeper.state, keeper.warning) == ("ready", None)
    keeper.close()
    again = Keeper(path, BOUNDS)
    assert again.get(MODEL, b"8") == b"value"
    again.close()


def test_clearing_forgets_what_a_removed_file_held(path: Path) -> None:
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, b"0", b"value")])
    path.unlink()
    assert keeper.clear() == 0
    assert keeper.get(MODEL, b"0") is None
    keeper.close()


@pytest.mark.parametrize("act", ["count", "clear"])
def test_a_file_that_was_replaced_is_not_the_one_counted_or_cleared(path: Path, act: str) -> None:
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, b"0", b"value")])
    for file in list(path.parent.iterdir()):
        file.rename(file.with_name(f"before-{file.name}"))
    keys = fill(path, count=7)
    assert (keeper.clear() if act == "clear" else keeper.count()) == 7
    keeper.close()
    again = Keeper(path, BOUNDS)
    assert again.get(MODEL, keys[0]) == (None if act == "clear" else value_of(keys[0]))
    again.close()


def test_a_store_locked_by_another_process_delays_little_and_loses_nothing(path: Path, no_rest: None) -> None:
    keys = fill(path)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    keeper = Keeper(path, BOUNDS)
    assert keeper.get(MODEL, keys[0]) == value_of(keys[0])  # a writer stops no reader
    started = time.monotonic()
    keeper.put([(MODEL, b"new", b"new")])
    assert time.monotonic() - started < 2
    assert keeper.state == "degraded"
    assert "locked" in str(keeper.warning)
    assert keeper.get(MODEL, b"new") == b"new"  # what waits is known
    locker.execute("COMMIT")
    locker.close()
    keeper.flush()
    assert (keeper.state, keeper.warning) == ("ready", None)
    keeper.close()
    assert Keeper(path, BOUNDS).get(MODEL, b"new") == b"new"


def test_a_store_that_cannot_be_written_is_read_and_hashes_the_model_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    config = ConfigureEngine(backend="vision", name="any", path=str(folder))
    keeper = Keeper(path, BOUNDS)
    keeper.put([(ModelIdentity(config), b"asked", b"value")])
    keeper.close()
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("DELETE FROM weights")
    locker.execute("INSERT INTO results VALUES (x'00', x'00', 0)")  # one for the eviction when it is opened
    locker.execute("BEGIN IMMEDIATE")
    hashed: list[str] = []

    def counted(stamp: FileStamp) -> bytes:
        hashed.append(stamp.name)
        return hash_file(stamp)

    monkeypatch.setattr(identity, "hash_file", counted)
    keeper, model = Keeper(path, BOUNDS), ModelIdentity(config)
    assert [keeper.get(model, b"asked") for _ in range(3)] == [b"value"] * 3
    assert (hashed, keeper.state) == (["model.safetensors"], "ready")
    locker.close()
    keeper.close()


def test_while_it_rests_nothing_waits_for_it(path: Path) -> None:
    fill(path)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("PRAGMA locking_mode=EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    keeper = Keeper(path, BOUNDS)
    keeper.get(MODEL, b"request 1")
    assert keeper.state == "degraded"
    started = time.monotonic()
    for i in range(1000):
        keeper.get(MODEL, b"request 1")
        keeper.put([(MODEL, str(i).encode(), b"v")])
    assert time.monotonic() - started < 0.2
    locker.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        keeper = Keeper(tmp_path / "results.db", BOUNDS)
        keeper.put([(MODEL, b"k", b"v")])
        assert keeper.state == "degraded"
        assert "Permission" in str(keeper.warning)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("there", ["directory", "fifo", "symlink", "parent is a file"])
def test_something_else_at_its_path(tmp_path: Path, there: str) -> None:
    path = tmp_path / "results.db"
    match there:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.write_bytes(b"")
            path = path / "results.db"
    keeper = Keeper(path, BOUNDS)
    keeper.put([(MODEL, b"k", b"v")])
    assert keeper.get(MODEL, b"k") is None
    assert keeper.state in ("degraded", "off")
    assert keeper.warning
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk(path: Path) -> None:
    fill(path, count=20)
    script = f"""
import resource, signal, sys
from pathlib import Path
from tests.store.test_keeper import BOUNDS, MODEL, value_of
from vlmd_bridge.store.keeper import Keeper
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
keeper = Keeper(Path({str(path)!r}), BOUNDS)
assert keeper.get(MODEL, b"request 1") == value_of(b"request 1")
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
for i in range(40):
    keeper.put([(MODEL, b"big %d" % i, b"x" * 10_000)])
assert keeper.state == "degraded", keeper.state
assert keeper.warning, keeper.warning
assert keeper.get(MODEL, b"request 1") == value_of(b"request 1")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
keeper._write_again_s = 0.0
keeper.flush()
assert (keeper.state, keeper.warning) == ("ready", None), keeper.warning
keeper.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parents[2])
    again = Keeper(path, BOUNDS)
    assert again.get(MODEL, b"big 39") == b"x" * 10_000
    assert again.count() == 60
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY


def test_a_kill_in_the_middle_of_writes_loses_nothing_that_was_reported(path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.store.test_keeper import BOUNDS, MODEL, value_of
from vlmd_bridge.store.keeper import Keeper
keeper = Keeper(Path({str(path)!r}), BOUNDS)
for i in range(1_000_000):
    key = b"request %d" % i
    keeper.put([(MODEL, key, value_of(key))])
    print(i, flush=True)
"""
    lost, total = 0, 0
    for round_ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as process:
            assert process.stdout is not None
            last = -1
            for line in process.stdout:
                last = int(line)
                if last == 50 + 37 * round_:
                    break
            threading.Timer(0.01 * round_, process.send_signal, [signal.SIGKILL]).start()
            for line in process.stdout:
                last = int(line) if line.endswith(b"\n") else last
        keeper = Keeper(path, BOUNDS)
        keys = [b"request %d" % i for i in range(last + 1)]
        lost += sum(keeper.get(MODEL, key) != value_of(key) for key in keys)
        total += len(keys)
        assert keeper.state == "ready"
        assert keeper.warning is None
        keeper.close()
    print(f"\nkilled writers: {lost} of {total} reported results lost")
    assert lost == 0
