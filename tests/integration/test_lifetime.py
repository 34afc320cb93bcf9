"""How a daemon begins and ends: election, ownership, idle exit, drain, a path that is taken, what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually, gone, results

SLOW = "fake:step_ms=10,tokens=60,width=4"


def test_ready_line_on_stdout_comes_alone_and_after_the_load(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(model="fake:load_s=0.5").wait_ready()
    assert daemon.stop() == 0
    statuses = [line["status"] for line in daemon.start_lines]
    assert statuses[0] == "bound"
    assert statuses[-1] == "ready"
    assert set(statuses[1:-1]) <= {"loading"}


def test_stdout_carries_the_ready_line_only(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_ready()
    daemon.process.terminate()
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.read().count(b"\n") == 1


def test_sigterm_lets_the_running_job_finish(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    family = daemon.family()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures[:8]])
        connection.line()
        daemon.process.terminate()
        lines = connection.answer()
    assert lines[-1]["partial"] is False
    assert daemon.process.wait(10) == 0
    assert not daemon.socket_path.exists()
    eventually(lambda: gone(family), what="the end of every process")


def test_a_job_beyond_the_drain_limit_is_told_so(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--drain-timeout", "0.3", model="fake:step_ms=100,tokens=200").wait_ready()
    with daemon.connect() as connection:
        connection.ask(0, "hello")
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
        eventually(lambda: daemon.status()["queue"]["running"] > 0)
        daemon.ask("shutdown")
        lines = connection.answer()
    assert {"event": "draining"} in lines
    assert (lines[-1]["code"], lines[-1]["retryable"]) == ("shutting_down", True)
    assert daemon.process.wait(10) == 0


def test_a_second_signal_is_immediate(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--drain-timeout", "60", model="fake:step_ms=100,tokens=500").wait_ready()
    family = daemon.family()
    with daemon.connect() as connection, daemon.connect() as watching:
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
        eventually(lambda: daemon.status()["queue"]["running"] > 0)
        watching.ask(1, "ping")
        daemon.process.terminate()
        eventually(lambda: watching.ask(1, "ping")[0]["result"]["state"] == "draining", what="the drain")
        daemon.process.terminate()
        daemon.process.wait(2)
    eventually(lambda: gone(family), 2, what="the end of every process")


def test_an_owned_daemon_ends_when_stdin_does(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("--owned").wait_ready()
    family = daemon.family()
    assert daemon.process.stdin is not None
    daemon.process.stdin.close()
    assert daemon.process.wait(5) == 0
    eventually(lambda: gone(family), 2, what="the end of every process")
    assert not daemon.socket_path.exists()


@pytest.mark.parametrize("model", ["fake", "fake:load_s=5", SLOW])
def test_an_owned_daemon_ends_with_its_parent(tmp_path: Path, model: str, pictures: list[str]) -> None:
    """Killed parent, in the states loading, idle and mid-batch: nothing is left after two seconds."""
    # The parent is a process of its own, killed; its stdin for the daemon is not a pipe, so only the pid tells.
    folder = Path("/tmp") / f"vlmd-t-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-P', '-m', 'vlmd', 'serve', '--owned', '--socket', sys.argv[1], "
        "'--model', sys.argv[2], '--log-file', sys.argv[3]], stdin=subprocess.DEVNULL)\n"
        "time.sleep(600)\n"
    )
    path = folder / "s.sock"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(path), model, str(tmp_path / "log")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(path.exists, 15, "the socket")
        (daemon,) = psutil.Process(parent.pid).children()
        eventually(lambda: len(daemon.children()) == 2, 5, "the workers")
        family = [daemon, *daemon.children(recursive=True)]
        with contextlib.ExitStack() as stack:
            if model == SLOW:
                from tests.support.daemon import Connection

                connection = stack.enter_context(Connection(path))
                connection.send(1, "describe_images", images=[{"imagePath": p} for p in pictures])
                connection.line()
            start = time.monotonic()
            parent.kill()
            parent.wait()
            eventually(lambda: gone(family), 15, what="the end of every process")
            took_s = time.monotonic() - start
        print(f"\norphan gone after {took_s:.2f} s ({model})")
        assert took_s < 2
        assert not path.exists()
    finally:
        parent.kill()
        parent.wait()


def test_idle_exit_and_its_race(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("--idle-timeout", "1.5").wait_bound()
    with daemon.connect() as connection:
        time.sleep(2.5)
        assert connection.ask(1, "ping")[0]["id"] == 1
    assert daemon.process.wait(6) == 0
    assert not daemon.socket_path.exists()


def test_a_second_daemon_finds_the_first_running(start_daemon: StartDaemon) -> None:
    first = start_daemon().wait_ready()
    second = start_daemon(socket_path=first.socket_path)
    line = second.wait_for("running", "ready", "fatal")
    assert (line["status"], line["pid"]) == ("running", first.process.pid)
    assert second.process.wait(5) == 0
    assert first.ask("ping")


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_a_live_daemon_takes_its_path_back_within_a_second(daemon: Daemon, how: str) -> None:
    daemon.socket_path.unlink()
    with contextlib.ExitStack() as stack:
        if how == "replaced":
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.bind(str(daemon.socket_path))
        start = time.monotonic()

        def answered() -> bool:
            try:
                return bool(daemon.ask("ping"))
            except (ConnectionRefusedError, FileNotFoundError):
                return False

        eventually(answered, 2)
    took_s = time.monotonic() - start
    print(f"\nrebound after {took_s:.2f} s ({how})")
    assert took_s < 1.2


def test_a_daemon_whose_lock_was_removed_finishes_its_jobs_and_gives_way(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    first = start_daemon(model=SLOW).wait_ready()
    with first.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures[:8]])
        lines = [connection.line()]
        # Running, it would notice within a second, and take the lock again.
        first.process.send_signal(signal.SIGSTOP)
        try:
            first.socket_path.with_name(f"{first.socket_path.name}.lock").unlink()
            second = start_daemon(socket_path=first.socket_path).wait_bound()
        finally:
            first.process.send_signal(signal.SIGCONT)
        lines += connection.answer()
    assert len(results(lines)) == 8
    assert first.process.wait(10) == 0
    assert f"another daemon (pid {second.process.pid}) has taken its place" in (first.folder / "log").read_text()
    assert second.status()["pid"] == second.process.pid


def test_a_regular_file_at_the_path_is_left_alone(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(folder=None)
    daemon.wait_ready()
    path = daemon.folder / "file.sock"
    path.write_text("mine")
    other = start_daemon(socket_path=path)
    line = other.wait_for("fatal", "ready")
    assert (line["status"], line["code"]) == ("fatal", "socket_unsafe")
    assert "not a socket" in line["error"]
    assert other.process.wait(5) == 2
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_is_refused_by_name(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(socket_path=Path("/tmp") / ("x" * 120))
    line = daemon.wait_for("fatal", "ready")
    assert line["code"] == "socket_unsafe"
    assert "bytes" in line["error"]


@pytest.mark.parametrize("victim", ["engine", "image"])
def test_kill_9_of_a_worker_costs_no_frame(start_daemon: StartDaemon, pictures: list[str], victim: str) -> None:
    daemon = start_daemon(model="fake:step_ms=10,tokens=40,width=4").wait_ready()
    calm = [result["description"] for result in results(
        daemon.ask("describe_images", images=[{"imagePath": path} for path in pictures])
    )]  # fmt: skip
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
        lines = [connection.line()]
        pid = daemon.engine_pid if victim == "engine" else daemon.image_pid
        os.kill(pid, signal.SIGKILL)
        assert daemon.ask("ping")
        lines += connection.answer()
    assert [result["description"] for result in results(lines)] == calm
    assert (daemon.engine_pid if victim == "engine" else daemon.image_pid) != pid


def test_a_frame_that_kills_the_engine_twice_fails_alone(start_daemon: StartDaemon, pictures: list[str]) -> None:
    probe = start_daemon().wait_ready()
    described = results(probe.ask("describe_images", images=[{"imagePath": path} for path in pictures[:12]]))
    digest = described[5]["description"].split()[1]
    daemon = start_daemon(faults=f"worker.segv@pixels:{digest}x*").wait_ready()
    lines = daemon.ask("describe_images", images=[{"imagePath": path} for path in pictures[:12]])
    codes = [result.get("code") for result in results(lines)]
    assert codes == [None] * 5 + ["worker_crashed"] + [None] * 6


def test_a_model_that_cannot_be_loaded_is_fatal_with_its_reason(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(model=str(tmp_path))
    line = daemon.wait_for("fatal", "ready")
    assert line["status"] == "fatal"
    assert line["code"].startswith("model_")
    assert daemon.process.wait(10) == 4
    assert not daemon.socket_path.exists()


def test_nothing_of_a_load_that_fails_is_left(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(model="fake:broken=1,load_s=0.5").wait_bound()
    family = daemon.family()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": "/a.png"}])
        (line,) = connection.answer()
    assert line["code"].startswith("model_")
    assert daemon.process.wait(10) == 4
    eventually(lambda: gone(family), 2, what="the end of every process")


def test_a_fault_point_that_does_not_exist_is_fatal_with_its_reason(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(faults="worker.explode@step:3")
    line = daemon.wait_for("fatal", "ready")
    assert line["code"] == "config_invalid"
    assert "VLMD_FAULT" in line["error"] and "there are abort" in line["error"]
    assert daemon.process.wait(10) == 2


def test_status_and_log_say_that_fault_points_are_armed(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(faults="worker.abort@step:100000").wait_ready()
    assert daemon.status()["faults"] == ["worker.abort@step:100000"]
    assert "fault points are armed: worker.abort@step:100000" in (daemon.folder / "log").read_text()


@pytest.mark.parametrize(
    "fault", ["worker.segv@step:6", "worker.exit@token:9", "worker.torn@step:6", "image.abort@picture:5"]
)
def test_a_fault_strikes_the_demo_model_once_and_costs_nothing(
    start_daemon: StartDaemon, pictures: list[str], fault: str
) -> None:
    calm = start_daemon(model="demo")
    struck = start_daemon(model="demo", faults=fault)
    images = [{"imagePath": path} for path in pictures[:8]]
    answers = [results(daemon.wait_ready().ask("describe_images", images=images)) for daemon in (calm, struck)]
    assert answers[0] == answers[1]
    assert f"fault point: {fault} strikes" in (struck.folder / "log").read_text()
