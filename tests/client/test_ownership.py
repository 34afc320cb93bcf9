"""Who starts a daemon, who ends it, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, is_gone, process_state, wait_until, wait_until_gone
from vlmd import _connector
from vlmd_protocol.paths import shared_socket_path, socket_folder

IMAGES = [f"/{at}.png" for at in range(40)]


def test_a_private_daemon_lives_as_long_as_its_client(journal: Journal) -> None:
    client = vlmd.Client("m", command=COMMAND)
    assert journal.pids == []
    with client:
        pid = client.hello().pid
        client.ping()
        assert journal.pids == [pid]
        (start,) = journal.entries("start")
        arguments = start["args"]
        assert arguments[0] == "serve"
        assert "--owned" in arguments
        assert arguments[arguments.index("--model") + 1] == "m"
        assert Path(arguments[arguments.index("--socket") + 1]).parent == socket_folder()
        assert os.getpgid(pid) == pid  # the terminal's Ctrl-C is not for it
    assert is_gone(pid)


@pytest.mark.anyio
async def test_so_does_that_of_the_async_client(journal: Journal) -> None:
    lines: list[str] = []
    journal.faults(stderr=["[MLX] hello from the engine"])
    async with vlmd.AsyncClient(command=COMMAND, log=lines.append) as client:
        pid = (await client.hello()).pid
        assert len(await client.describe_all(IMAGES)) == 40
    assert is_gone(pid)
    assert "[VLM] [MLX] hello from the engine" in lines


@pytest.mark.anyio
async def test_a_cancelled_async_client_leaves_no_daemon(journal: Journal) -> None:
    journal.faults(pause_s=5)
    with anyio.CancelScope() as scope:
        async with vlmd.AsyncClient(command=COMMAND) as client:
            await client.hello()
            scope.deadline = anyio.current_time() + 0.1
            await client.describe_all(IMAGES)
    assert scope.cancelled_caught
    assert is_gone(journal.pids[0])


def test_the_daemon_ends_with_its_forgotten_client(journal: Journal) -> None:
    client = vlmd.Client(command=COMMAND)
    pid = client.hello().pid
    del client
    wait_until_gone(pid)


def test_a_temporary_client_lives_as_long_as_its_batches(journal: Journal) -> None:
    frames = [frame for batch in vlmd.Client(command=COMMAND).describe(IMAGES) for frame in batch.results]
    assert len(frames) == 40


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(3)", "raise ZeroDivisionError", "os._exit(0)", "os.kill(os.getpid(), 9)"],
)
def test_the_daemon_ends_with_its_process(journal: Journal, ending: str) -> None:
    start = f"import os, sys, vlmd; client = vlmd.Client(command={COMMAND!r})"
    code = f"{start}; print(client.hello().pid, flush=True); {ending}"
    started = time.monotonic()
    output = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
    ).stdout
    pid = int(output)
    wait_until_gone(pid)
    assert time.monotonic() - started < 5  # an idle client keeps no interpreter alive


def test_a_daemon_that_will_not_end_is_killed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connector, "DRAIN_S", 0.1)
    monkeypatch.setattr(_connector, "TERM_S", 0.1)
    journal.faults(ignore_term=True)
    with vlmd.Client(command=COMMAND) as client:
        pid = client.hello().pid
        wait_until(lambda: client._core.connector.process is not None and client._core.connector.process.startup.over)
    assert is_gone(pid)


def test_a_shared_daemon_outlives_its_client(journal: Journal, folder: Path) -> None:
    with vlmd.Client(socket=folder / "s", command=COMMAND) as first:
        pid = first.hello().pid
    assert not is_gone(pid)
    assert os.getsid(pid) == pid
    (start,) = journal.entries("start")
    assert start["args"][start["args"].index("--idle-timeout") + 1] == "300"
    assert "--owned" not in start["args"]
    with vlmd.Client(socket=folder / "s", start=False) as second:
        assert second.hello().pid == pid
        second.shutdown()
    wait_until_gone(pid)


def test_where_a_client_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmd._settings import resolve

    assert resolve().ownership == "owned"
    assert resolve(shared=True).socket == shared_socket_path()
    assert resolve(socket="/tmp/x", start=False).ownership == "attached"
    monkeypatch.setenv("VLMD_SOCKET", "/tmp/y")
    assert (resolve().socket, resolve().ownership) == (Path("/tmp/y"), "shared")
    assert resolve(shared=True).socket == Path("/tmp/y")
    assert resolve(socket="/tmp/x").socket == Path("/tmp/x")
    assert resolve(shared=False).ownership == "owned"
    with pytest.raises(ValueError, match="not both"):
        resolve(socket="/tmp/x", shared=False)
    with pytest.raises(ValueError, match="start=False"):
        resolve(shared=False, start=False)


def test_starters_that_race_get_one_daemon(journal: Journal, folder: Path) -> None:
    pids: list[int] = []
    clients = [vlmd.Client(socket=folder / "s", command=COMMAND) for _ in range(6)]
    threads = [threading.Thread(target=lambda c=client: pids.append(c.hello().pid)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(pids) == 6
    assert len(set(pids)) == 1
    clients[0].shutdown()
    for client in clients:
        client.close()
    wait_until_gone(pids[0])


def test_threads_that_race_start_one_private_daemon(journal: Journal) -> None:
    with vlmd.Client(command=COMMAND) as client:
        threads = [threading.Thread(target=client.ping) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(journal.pids) == 1


def test_after_shutdown_a_call_starts_another(journal: Journal) -> None:
    with vlmd.Client(command=COMMAND) as client:
        first = client.hello().pid
        client.shutdown()
        assert client.hello().pid != first
        assert is_gone(first)


def test_a_start_that_fails_says_why(journal: Journal) -> None:
    journal.faults(stderr=["Traceback", "ImportError: no metal"], exit=7)
    with vlmd.Client(command=COMMAND) as client, pytest.raises(vlmd.StartError) as caught:
        client.ping()
    assert "ended with status 7" in str(caught.value)
    assert "ImportError: no metal" in str(caught.value)
    assert caught.value.code == "start_failed"


@pytest.mark.parametrize("fault", ["fatal", "fatal_late"])
def test_the_daemons_own_reason(journal: Journal, fault: str) -> None:
    journal.faults(**{fault: {"error": "no model of that name", "code": "model_not_found"}}, pause_s=5)
    with (
        vlmd.Client(command=COMMAND) as client,
        pytest.raises(vlmd.StartError, match="no model of that name") as caught,
    ):
        client.describe_all(IMAGES)
    assert caught.value.code == "model_not_found"
    assert len(journal.pids) == 1


def test_a_shared_start_that_fails_says_why(journal: Journal, folder: Path) -> None:
    journal.faults(stderr=["ImportError: no metal"], exit=7)
    with vlmd.Client(socket=folder / "s", command=COMMAND) as client, pytest.raises(vlmd.StartError, match="no metal"):
        client.ping()


def test_a_command_that_cannot_run(folder: Path) -> None:
    (folder / "bad").write_text("#!/nowhere\n")
    (folder / "bad").chmod(0o700)
    with vlmd.Client(command=[str(folder / "bad")]) as client, pytest.raises(vlmd.StartError, match="No such file"):
        client.ping()


def test_a_command_that_says_nothing_ends_at_the_deadline(journal: Journal) -> None:
    journal.faults(mute=True)
    with vlmd.Client(command=COMMAND, timeouts=vlmd.Timeouts(start_s=1.0)) as client:
        with pytest.raises(vlmd.DeadlineError) as caught:
            client.ping()
        assert caught.value.phase == "start"
        assert is_gone(journal.pids[0])


def test_progress_starts_that_deadline_again(journal: Journal) -> None:
    journal.faults(loading=0.8)
    with vlmd.Client(command=COMMAND, timeouts=vlmd.Timeouts(start_s=0.5)) as client:
        assert client.ping().state == "ready"


def test_to_close_while_it_starts(journal: Journal) -> None:
    journal.faults(mute=True)
    client = vlmd.Client(command=COMMAND)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client.ping()
        except vlmd.VlmdError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: bool(journal.pids))
    client.close()
    thread.join(5)
    assert isinstance(errors[0], vlmd.ClosedError)
    assert is_gone(journal.pids[0])


def test_a_daemon_that_is_stopped_is_waited_for(journal: Journal) -> None:
    """SIGSTOP: the client's deadline passes, no second daemon is started, and SIGCONT brings it back."""
    with vlmd.Client(command=COMMAND, timeouts=vlmd.Timeouts(connect_s=0.3, first_byte_s=0.3)) as client:
        pid = client.hello().pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(pid) in ("T", ""))
        started = time.monotonic()
        with pytest.raises(vlmd.DeadlineError):
            client.ping()
        with pytest.raises(vlmd.DeadlineError):
            client.describe_all(IMAGES)
        print(f"two deadlines of 0.3 s passed after {time.monotonic() - started:.2f} s")
        assert time.monotonic() - started < 2
        os.kill(pid, signal.SIGCONT)
        assert len(client.describe_all(IMAGES)) == 40
        assert journal.pids == [pid]
