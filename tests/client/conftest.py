"""Fixtures: a short folder for sockets, servers and fake daemons of one test, and the proof that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_daemon
from tests.support.fake_server import Dialogue, FakeServer, Message
from vlmd_protocol.messages import StatusResult
from vlmd_protocol.paths import lock_path

COMMAND = [sys.executable, fake_daemon.__file__]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("VLMD_", "ESCRIBANO_")):
            monkeypatch.delenv(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose sockets have short paths."""
    path = Path(tempfile.mkdtemp(prefix="vc-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., FakeServer]]:
    """Start a fake server at ``folder/s``."""
    with ExitStack() as stack:
        yield lambda *dialogues: stack.enter_context(FakeServer(folder / "s", *dialogues))


class Journal:
    """What fake daemons did, and the way to tell them what to do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "journal"
        self._monkeypatch = monkeypatch
        self.faults()

    def faults(self, **faults: Any) -> None:
        """Set what the daemons that start from now on do wrong."""
        self._monkeypatch.setenv("FAKE_DAEMON", json.dumps({"journal": str(self._path), **faults}))

    def entries(self, what: str) -> list[Message]:
        if not self._path.exists():
            return []
        entries = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [entry for entry in entries if entry["what"] == what]

    @property
    def pids(self) -> list[int]:
        return [entry["pid"] for entry in self.entries("start")]


@pytest.fixture
def journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    journal = Journal(folder, monkeypatch)
    yield journal
    for start in journal.entries("start"):
        wait_until_gone(start["pid"])
        # A daemon that was killed leaves its socket, and every one its lock, which other tests must not count.
        socket = Path(start["args"][start["args"].index("--socket") + 1])
        socket.unlink(missing_ok=True)
        lock_path(socket).unlink(missing_ok=True)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return process_state(pid) == "Z"  # it has ended: whoever started it has only not asked yet


def process_state(pid: int) -> str:
    """The letter in ``/proc``, empty where there is none."""
    path = Path(f"/proc/{pid}/stat")
    return path.read_text().rpartition(")")[2].split()[0] if path.exists() else ""


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def inferred(status: StatusResult) -> int:
    """Return for how many frames the engine was asked."""
    assert isinstance(status.frames_cached, int)
    assert isinstance(status.frames_duplicate, int)
    return status.frames_done - status.frames_cached - status.frames_duplicate


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: is_gone(pid))


def vlmd_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vlmd ")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    wait_until(lambda: not vlmd_threads())


__all__ = ["COMMAND", "Dialogue", "Journal", "is_gone", "vlmd_threads", "wait_until", "wait_until_gone"]
