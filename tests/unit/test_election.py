"""The election's files: who owns them, what is refused, what is swept."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmd_bridge.daemon.election import Election, LostElection, sweep
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


def test_the_lock_of_a_single_owners_socket_goes_with_it(folder: Path) -> None:
    election = Election(folder / "own-1-ab.sock")
    election.close()
    assert not list(folder.iterdir())


def test_what_killed_daemons_left_is_swept_and_nothing_else(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in ("own-1-dead.sock", "own-2-young.sock", "shared-1.sock"):
        (folder / name).touch()
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
    alive.close()
