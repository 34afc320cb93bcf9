"""The election's files: who owns them, what is refused, what is swept."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmd_bridge.daemon.election import Election, LostElection, remove_stale, sweep
from vlmd_protocol import paths
from vlmd_protocol.errors import UnsafeSocketError


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(f"/tmp/vlmd-t-{os.getpid()}-{time.monotonic_ns()}")
    monkeypatch.setattr(paths, "socket_folder", lambda uid=None: folder)
    yield folder
    for path in folder.glob("*"):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()


def test_the_lock_is_held_for_life_and_names_its_holder(folder: Path) -> None:
    first = Election(folder / "shared-1.sock")
    with pytest.raises(LostElection) as caught:
        Election(folder / "shared-1.sock")
    assert caught.value.pid == os.getpid()
    first.close()
    assert (folder / "shared-1.sock.lock").exists()
    Election(folder / "shared-1.sock").close()


def test_a_lock_that_was_removed_is_taken_again(folder: Path) -> None:
    election = Election(folder / "shared-1.sock")
    (folder / "shared-1.sock.lock").unlink()
    election.ensure_lock()
    assert election.holds_lock
    with pytest.raises(LostElection):
        Election(folder / "shared-1.sock")
    election.close()


@pytest.mark.parametrize("name", ["shared-1.sock", "own-1-ab.sock"])
def test_a_lock_of_the_same_name_is_another_daemons(folder: Path, name: str) -> None:
    first = Election(folder / name)
    (folder / f"{name}.lock").unlink()
    second = Election(folder / name)
    with pytest.raises(LostElection) as caught:
        first.ensure_lock()
    assert caught.value.pid == os.getpid()
    first.close()
    assert second.holds_lock
    second.close()


def test_the_lock_looks_used(folder: Path) -> None:
    election = Election(folder / "shared-1.sock")
    lock = folder / "shared-1.sock.lock"
    os.utime(lock, (0, 0))
    election.refresh()
    assert lock.stat().st_atime > 0 and lock.stat().st_mtime > 0
    election.close()


def test_the_folder_is_made_for_us_alone(folder: Path) -> None:
    old = os.umask(0)
    try:
        Election(folder / "shared-1.sock").close()
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(old)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_socket_is_ours_alone_whatever_the_umask(folder: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        election = Election(folder / "shared-1.sock")
        bound = election.bind()
        assert bound.path.stat().st_mode & 0o077 == 0
        assert bound.reachable
    finally:
        os.umask(old)
    bound.unlink()
    bound.close()
    election.close()


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UnsafeSocketError, match="chmod 700"):
        Election(folder / "shared-1.sock")


def test_a_folder_that_is_a_symlink_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(UnsafeSocketError, match="symbolic link"):
            Election(folder / "shared-1.sock")
    finally:
        folder.unlink()


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UnsafeSocketError, match="belongs to user"):
        Election(folder / "shared-1.sock")


def test_a_lock_that_is_a_symlink_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "shared-1.sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeSocketError, match="lock"):
        Election(folder / "shared-1.sock")
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the caller's own choice, which anybody may write to, as /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_like_tmp_will_do_as_long_as_it_is_sticky(chosen: Path) -> None:
    election = Election(chosen / "s.sock")
    assert (chosen / "s.sock.lock").stat().st_mode & 0o777 == 0o600
    election.close()
    chosen.chmod(0o777)
    with pytest.raises(UnsafeSocketError, match="replace files"):
        Election(chosen / "s.sock")


def test_a_chosen_folder_of_another_user_is_refused(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def owned_by_another(path: Path, **arguments: bool) -> os.stat_result:
        status = list(real(path, **arguments))
        status[stat.ST_UID] = 4711
        return os.stat_result(status)

    monkeypatch.setattr(Path, "stat", owned_by_another)
    with pytest.raises(UnsafeSocketError, match="4711"):
        Election(chosen / "s.sock")


def test_a_lock_linked_to_another_file_of_ours_is_not_written_to(chosen: Path, tmp_path: Path) -> None:
    (chosen / "mine").write_text("precious")
    (chosen / "s.sock.lock").hardlink_to(chosen / "mine")
    with pytest.raises(UnsafeSocketError, match="not a file of its own"):
        Election(chosen / "s.sock")
    assert (chosen / "mine").read_text() == "precious"


def test_a_lock_that_is_a_fifo_is_refused_at_once(chosen: Path) -> None:
    os.mkfifo(chosen / "s.sock.lock")
    with pytest.raises(UnsafeSocketError, match="lock"):
        Election(chosen / "s.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_files_of_another_user_are_refused_and_left_alone(chosen: Path) -> None:
    lock = chosen / "s.sock.lock"
    lock.touch(0o666)
    os.chown(lock, 4711, 4711)
    with pytest.raises(UnsafeSocketError, match=r"4711|Permission denied"):  # the latter by fs.protected_regular
        Election(chosen / "s.sock")
    lock.unlink()
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(chosen / "s.sock"))
    os.chown(chosen / "s.sock", 4711, 4711)
    election = Election(chosen / "s.sock")
    with pytest.raises(UnsafeSocketError, match="belongs to user 4711"):
        election.bind()
    election.close()
    assert (chosen / "s.sock").exists()


def test_a_symlink_at_the_socket_path_is_left_alone(chosen: Path, tmp_path: Path) -> None:
    (chosen / "s.sock").symlink_to(tmp_path / "elsewhere")
    election = Election(chosen / "s.sock")
    with pytest.raises(UnsafeSocketError, match="not a socket"):
        election.bind()
    election.close()
    assert (chosen / "s.sock").is_symlink()


def test_the_lock_of_a_single_owners_socket_goes_with_it(folder: Path) -> None:
    election = Election(folder / "own-1-ab.sock")
    election.close()
    assert not list(folder.iterdir())


def test_what_killed_daemons_left_is_swept_and_nothing_else(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in ("own-1-dead.sock", "own-2-young.sock", "shared-1.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / name))
        (folder / f"{name}.lock").touch()
    alive = Election(folder / "own-3-alive.sock")
    for lock in folder.glob("*.lock"):
        if "young" not in lock.name:
            os.utime(lock, (0, 0))
    sweep(folder)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [
        "own-2-young.sock", "own-2-young.sock.lock", "own-3-alive.sock.lock", "shared-1.sock", "shared-1.sock.lock",
    ]  # fmt: skip
    assert not remove_stale(alive.path)
    alive.close()
    assert remove_stale(folder / "shared-1.sock")
    assert not remove_stale(folder / "shared-1.sock")
    assert not remove_stale(folder / "nothing.sock")
