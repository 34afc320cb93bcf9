"""`ping`, `status`, `stop`, `logs` and `config` with and without a daemon."""

from __future__ import annotations

import json
import os
import tomllib

import psutil
import pytest

from tests.cli.command import TIMEOUT_S, Command

FAKE = ("--model", "fake")


@pytest.mark.parametrize("verb", ["ping", "status"])
def test_nothing_running_exits_3(vlmd: Command, verb: str) -> None:
    done = vlmd.run(verb, "--json", status=3)
    assert json.loads(done.stdout)["code"] == "connect_failed"
    assert "[connect_failed]" in done.stderr
    assert not vlmd.socket.exists()


def test_ping_and_status_of_a_ready_daemon(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, frames[0])
    ping = json.loads(vlmd.run("ping", "--json").stdout)
    assert ping["state"] == "ready"
    assert ping["roundTripMs"] < 1000
    status = json.loads(vlmd.run("status", "--json").stdout)
    assert status["pid"] == ping["pid"]
    assert status["logFile"] == str(vlmd.log)
    text = vlmd.run("status").stdout
    for shown in ("fake: ready", "blas", "dtype", str(vlmd.log), "queue", "MiB"):
        assert shown in text


def test_status_exits_4_while_the_model_loads(vlmd: Command) -> None:
    with vlmd.start("serve", "--model", "fake:load_s=30") as daemon:
        while not vlmd.socket.exists():
            assert daemon.poll() is None
        status = json.loads(vlmd.run("status", "--json", status=4).stdout)
        assert status["state"] == "loading"
        vlmd.run("stop")
        assert daemon.wait(TIMEOUT_S) == 0


def test_stop_waits_until_the_daemon_is_gone(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, frames[0])
    done = json.loads(vlmd.run("stop", "--json").stdout)
    assert done["stopped"] is True
    assert not psutil.pid_exists(done["pid"]) or psutil.Process(done["pid"]).status() == psutil.STATUS_ZOMBIE
    assert not vlmd.socket.exists()
    assert json.loads(vlmd.run("stop", "--json").stdout)["stopped"] is False


def test_stop_removes_what_a_killed_daemon_left_and_nothing_else(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, frames[0])
    daemon = psutil.Process(json.loads(vlmd.run("ping", "--json").stdout)["pid"])
    daemon.kill()
    daemon.wait(TIMEOUT_S)
    assert vlmd.socket.exists()
    assert "Removed the socket" in vlmd.run("stop").stdout
    assert not vlmd.socket.exists()
    assert json.loads(vlmd.run("stop", "--json").stdout)["removed"] is False
    vlmd.socket.write_text("no socket")
    assert "not a socket" in vlmd.run("stop", status=3).stderr
    assert vlmd.socket.read_text() == "no socket"
    vlmd.socket.unlink()


def test_logs_shows_the_end_and_follows_over_a_rotation(vlmd: Command, frames: list[str]) -> None:
    assert "no log yet" in vlmd.run("logs", status=1).stderr
    vlmd.run("describe", *FAKE, frames[0])
    assert "listening at" in vlmd.run("logs").stdout
    [last] = vlmd.lines("logs", "-n", "1", "--json")
    assert last.keys() == {"time", "pid", "level", "message"}
    vlmd.run("stop")
    with vlmd.start("logs", "-f", "-n", "0") as follower:
        assert follower.stdout is not None
        os.truncate(vlmd.log, 0)
        follower.kill()
    lines = "".join(f"2026-02-22T10:00:00.000Z 1 INFO line {number}\n" for number in range(3))
    vlmd.log.write_text(lines)
    with vlmd.start("logs", "-f", "-n", "1") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().endswith("line 2\n")
        vlmd.log.rename(vlmd.folder / "vlmd.log.1")
        vlmd.log.write_text("2026-02-22T10:00:00.000Z 1 INFO after\n")
        assert follower.stdout.readline().endswith("after\n")
        follower.send_signal(2)
        assert follower.wait(TIMEOUT_S) == 130


def test_prompts_and_pictures_are_not_logged(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, "--prompt", "a secret question", frames[0])
    text = vlmd.log.read_text()
    assert "secret" not in text
    assert "frame-0" not in text


def test_reader_that_is_gone_makes_no_noise(vlmd: Command) -> None:
    with vlmd.start("config") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 141
    assert err == ""


def test_config_shows_values_and_origins(vlmd: Command) -> None:
    vlmd.config.write_text("width = 3\nunknown = 1\n")
    done = vlmd.run("config", "--show-origin")
    assert tomllib.loads(done.stdout)["width"] == 3
    assert f"# file {vlmd.config}" in done.stdout
    assert "# environment VLMD_SOCKET" in done.stdout
    assert "'unknown'" in done.stderr
    as_json = json.loads(vlmd.run("config", "--json").stdout)
    assert as_json["settings"]["width"]["value"] == 3
    assert as_json["fileExists"] is True
    vlmd.config.write_text("width = 'three'\n")
    assert json.loads(vlmd.run("config", "--json", status=2).stdout)["code"] == "config_invalid"
    vlmd.config.write_text("")
