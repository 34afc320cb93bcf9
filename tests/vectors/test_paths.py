"""The vectors of paths against the shared rules, and against a daemon that starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conftest import StartDaemon
from tests.vectors.cases import cases
from tests.vectors.made import OTHER_UID, make
from vlmd_protocol import paths
from vlmd_protocol.errors import UnsafeSocketError
from vlmd_protocol.startup import StartupLine
from vlmd_protocol.vectors import Case, to_bytes


@pytest.fixture
def place() -> Iterator[Path]:
    """A short folder: pytest's own are too deep for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="vlmd-p-", dir="/tmp"))
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def outcome(check: Callable[[Path], None], path: Path) -> str:
    try:
        check(path)
    except UnsafeSocketError as error:
        # No path comes without what to do or what it is.
        assert str(path)[:40] in str(error) or "bytes" in str(error)
        return error.code
    except FileNotFoundError:
        return "missing"
    return "ok"


def skip_unless_root(case: Case) -> None:
    if "root" in case.get("needs", []) and os.geteuid() != 0:
        pytest.skip("needs root: something has to belong to another user")


@pytest.mark.parametrize("case", cases("paths/names"))
def test_names(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if case["check"] == "lock":
        assert str(paths.lock_path(Path(case["path"]))) == case["lock"]
        return
    assert str(paths.socket_folder(case["uid"])) == case["folder"]
    monkeypatch.setattr(os, "geteuid", lambda: case["uid"])
    assert str(paths.shared_socket_path()) == case["shared"]
    owned = paths.new_owned_socket_path()
    assert paths.is_owned_socket(owned)
    assert not paths.is_owned_socket(paths.shared_socket_path())
    paths.check_length(owned)


@pytest.mark.parametrize("case", cases("paths/length"))
def test_length(case: Case) -> None:
    assert outcome(paths.check_length, Path(os.fsdecode(to_bytes(case["path"])))) == case["outcome"]


@pytest.mark.parametrize("case", cases("paths/folder"))
def test_folder(case: Case, place: Path) -> None:
    skip_unless_root(case)
    make(place / "it", case["make"])
    assert outcome(paths.check_folder, place / "it") == case["outcome"]


@pytest.mark.parametrize("case", cases("paths/ensure"))
def test_ensure(case: Case, place: Path) -> None:
    make(place / "it", case["make"])
    umask = os.umask(int(case["umask"], 8))
    try:
        assert outcome(paths.ensure_folder, place / "it") == case["outcome"]
    finally:
        os.umask(umask)
    if "mode" in case:
        assert (place / "it").lstat().st_mode & 0o7777 == int(case["mode"], 8)


@pytest.mark.parametrize("case", cases("paths/socket"))
def test_socket(case: Case, place: Path) -> None:
    skip_unless_root(case)
    make(place / "it", case["make"])
    assert outcome(paths.check_socket, place / "it") == case["outcome"]


# Run as root and then as somebody else, so that the interpreter itself may lie where that one cannot read.
SPEAK_AS = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as peer:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    peer.settimeout(5)
    peer.connect(sys.argv[1])
    try:
        peer.send(b'{"id":1,"method":"ping"}\\n')
        sys.stdout.buffer.write(peer.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        pass
"""


def said_to_another_user(socket_path: Path) -> bytes:
    """Return what the server says to a process of another user before it closes the connection."""
    command = [sys.executable, "-c", SPEAK_AS, str(socket_path), str(OTHER_UID)]
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=20, check=True).stdout


@pytest.mark.parametrize("case", cases("paths/start"))
def test_start(case: Case, place: Path, start_daemon: StartDaemon) -> None:
    skip_unless_root(case)
    folder = place / "f"
    if case["at"] == "folder":
        make(folder, case["make"])
    else:
        folder.mkdir(mode=0o700)
    socket_path = folder / "s.sock"
    at = {"folder": folder, "socket": socket_path, "lock": paths.lock_path(socket_path)}[case["at"]]
    if case["at"] != "folder":
        make(at, case["make"])
    before = at.lstat() if case["make"]["kind"] != "missing" else None
    daemon = start_daemon(socket_path=socket_path)
    line = daemon.wait_for("ready", "fatal")
    assert {key: line[key] for key in case["startup"]} == case["startup"]
    # What a daemon tells has the form that the schema is made from.
    for told in daemon.start_lines:
        msgspec.json.decode(msgspec.json.encode(told), type=StartupLine)
        assert None not in told.values()
    if line["status"] == "ready":
        assert daemon.ask("ping")[0]["done"]
    if "socket_mode" in case:
        assert socket_path.lstat().st_mode & 0o7777 == int(case["socket_mode"], 8)
    if case.get("peer") == "other":
        for opened in (place, folder, socket_path):
            opened.chmod(0o777)
        assert said_to_another_user(socket_path) == b""
        folder.chmod(0o700)
    if before is not None:
        after = at.lstat()
        assert ((before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)) is case["kept"]
