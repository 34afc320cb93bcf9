"""Promise 15: whatever is wrong with the machine, umask, folders, owners, a full disk, no descriptors, is a named error
or costs nothing; a daemon that runs goes on.

What may stand at the socket's path, its lock's and its folder's, and whose, are the vectors ``paths/start``, which
``tests/vectors/test_paths.py`` starts daemons on; the rest is here.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Command
from tests.conftest import StartDaemon
from tests.faults.figures import figure
from tests.support.daemon import Connection, Daemon, eventually, gone, results
from vlmd_protocol.errors import CODES
from vlmd_protocol.vectors import load

# A device that is always full; Linux has it.
FULL = Path("/dev/full")

# Standard streams, event loop, sockets, log, arena and two workers; a connection more and there are none.
_FEW_DESCRIPTORS = 40

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vlmd-x-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """What is started now may have few descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_any_umask(start_daemon: StartDaemon, pictures: list[str], umask: int) -> None:
    before = os.umask(umask)
    try:
        daemon = start_daemon()
    finally:
        os.umask(before)
    daemon.wait_ready()
    modes = {path.name: path.lstat().st_mode & 0o777 for path in daemon.folder.iterdir()}
    assert modes == {"s.sock": 0o600, "s.sock.lock": 0o600, "log": 0o600}
    assert results(daemon.ask("describe_images", images=[{"imagePath": pictures[0]}]))[0]["description"]
    figure("15", umask=f"{umask:03o}", modes=",".join(sorted({f"{mode:03o}" for mode in modes.values()})))


@needs_full
def test_a_disk_that_is_full_costs_the_log_and_nothing_else(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--log-file", str(FULL)).wait_ready()
    described = results(daemon.ask("describe_images", images=[{"imagePath": path} for path in pictures]))
    assert all(result.get("code") is None for result in described)
    assert daemon.stop() == 0
    assert not [line for line in daemon.stderr if "Traceback" in line]


@needs_full
def test_results_that_cannot_be_written_are_told(pictures: list[str], folder: Path) -> None:
    command = Command()
    try:
        # `--output` on a full disk: the first batch is the one that fails, and the message says what is kept.
        (folder / "out.jsonl").symlink_to(FULL)
        done = command.run(
            "describe", "--model", "fake", "--output", str(folder / "out.jsonl"), *pictures[:4], status=2
        )
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        command.close()
    figure("15", full_disk="named")


@pytest.mark.parametrize("limit", [6, 9, 12, 16, 20])
def test_too_few_descriptors_to_start(few_descriptors: None, folder: Path, limit: int) -> None:
    """A daemon that cannot start ends, with a reason on its last line, and leaves nothing."""
    command = [sys.executable, "-P", "-m", "vlmd", "serve", "--model", "fake", "--socket", str(folder / "s.sock")]
    process = subprocess.Popen(
        [*command, "--log-file", str(folder / "log")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if '"ready"' in ready:
            process.terminate()
    finally:
        _, errors = process.communicate(timeout=30)
    assert '"ready"' in ready or process.returncode != 0
    if process.returncode:
        assert "Too many open files" in ready + errors or "No file descriptors" in ready + errors
    assert not (folder / "s.sock").exists()


def test_connections_beyond_the_descriptors_wait(start_daemon: StartDaemon) -> None:
    """Those that are open are served; the others wait until some close; none is lost."""
    daemon = limited(start_daemon)
    with daemon.connect() as first, crowd_at(daemon, first) as crowd:
        # The log tells that there are no more; nobody who is in notices.
        eventually(lambda: "cannot accept a connection" in (daemon.folder / "log").read_text())
        for number in range(50):
            assert first.ask(number, "ping")[0]["result"]["state"] == "ready"
        answered = 0
        for number, connection in enumerate(crowd):
            with connection:
                assert connection.answer()[0]["id"] == number
                answered += 1
    figure("15", descriptors=_FEW_DESCRIPTORS, connections=len(crowd), answered=answered)
    assert daemon.stop() == 0


@pytest.mark.parametrize("victim", ["engine", "image"])
def test_a_worker_that_ends_when_there_are_no_descriptors(
    start_daemon: StartDaemon, pictures: list[str], victim: str
) -> None:
    """Its successor comes when there are some again; the daemon lives, and says so meanwhile."""
    daemon = limited(start_daemon)
    family = daemon.family()
    pid = daemon.engine_pid if victim == "engine" else daemon.image_pid
    with daemon.connect() as first, crowd_at(daemon, first) as crowd:
        eventually(lambda: "cannot accept a connection" in (daemon.folder / "log").read_text())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: gone([process for process in family if process.pid == pid]))
        first.send(1, "describe_images", images=[{"imagePath": path} for path in pictures[:8]])
        first.send(2, "ping")
        while (line := first.line()).get("id") != 2:
            pass
        assert line["result"]["state"] in ("ready", "loading")
        for connection in crowd:
            connection.close()
        lines: list[dict[str, Any]] = []
        while not (lines and lines[-1].get("done")):
            line = first.line()
            lines += [line] if line.get("id") == 1 else []
        assert [result.get("code") for result in results(lines)] == [None] * 8
    assert "Traceback" not in (daemon.folder / "log").read_text()
    assert daemon.stop() == 0


def test_every_start_vector_names_its_error() -> None:
    """The other half of the promise is in the vectors: how many there are, and that each error has its code."""
    cases = load("paths/start")
    refused = [case for case in cases if case["startup"]["status"] == "fatal"]
    assert refused
    assert all(case["startup"]["code"] in CODES or case["startup"]["code"] == "socket_unsafe" for case in refused)
    figure("15", start_vectors=len(cases), refused_by_name=len(refused))


@contextlib.contextmanager
def crowd_at(daemon: Daemon, first: Connection) -> Iterator[list[Connection]]:
    """Let `first` say hello, and then connect and ask as many as the daemon has no descriptors for."""
    first.ask(0, "hello")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(daemon.connect()) for _ in range(2 * _FEW_DESCRIPTORS)]
        for number, connection in enumerate(crowd):
            connection.send(number, "ping")
        yield crowd


def limited(start_daemon: StartDaemon) -> Daemon:
    """Start a daemon that may have few descriptors."""
    daemon = start_daemon().wait_ready()
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (_FEW_DESCRIPTORS, _FEW_DESCRIPTORS))
    return daemon
