"""`scripts/mlx_bridge.py`: how it starts, where its configuration comes from, and how it stands by."""

from __future__ import annotations

import ast
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from tests.adr006.bridge import ROOT, SCRIPT, Bridge, bridge_environment, until_done
from tests.adr006.conftest import StartBridge
from tests.conftest import StartDaemon
from tests.support.daemon import eventually, gone, results
from vlmd_bridge.cli.mlx_bridge import DEFAULT_MODEL, DEFAULT_SOCKET, socket_path


def _images(pictures: list[str], count: int) -> list[dict[str, Any]]:
    return [{"imagePath": path, "timestamp": float(i)} for i, path in enumerate(pictures[:count])]


# --- start ----------------------------------------------------------------------------------------------------


def test_stdin_at_its_end_does_not_end_it(start_bridge: StartBridge) -> None:
    bridge = start_bridge().wait_ready()
    time.sleep(0.6)
    with bridge.connect() as connection:
        assert connection.ask(1, "ping")


def test_ready_comes_after_the_load(start_bridge: StartBridge) -> None:
    bridge = start_bridge(model="fake:load_s=0.6")
    began_s = time.monotonic()
    assert bridge.start_line()["status"] == "ready"
    assert time.monotonic() - began_s > 0.6


def test_a_load_that_fails_is_fatal(start_bridge: StartBridge) -> None:
    bridge = start_bridge(model="fake:broken=1")
    line = bridge.start_line()
    assert line["status"] == "fatal"
    assert "asked to fail" in line["error"]
    assert bridge.process.wait(10) == 4
    assert not bridge.socket_path.exists()


def test_without_a_model_it_is_the_adrs(start_bridge: StartBridge, tmp_path: Path) -> None:
    bridge = start_bridge(model=None, environ={"HF_HOME": str(tmp_path)})
    line = bridge.start_line()
    assert line["status"] == "fatal"
    assert f"hf download {DEFAULT_MODEL}" in line["error"]
    assert bridge.process.wait(10) == 4


def test_a_setting_that_is_wrong_is_fatal(start_bridge: StartBridge) -> None:
    bridge = start_bridge(environ={"ESCRIBANO_VLM_BATCH_SIZE": "many"})
    line = bridge.start_line()
    assert (line["status"], line["code"]) == ("fatal", "config_invalid")
    assert "ESCRIBANO_VLM_BATCH_SIZE" in line["error"]
    assert bridge.process.wait(10) == 2


@pytest.mark.parametrize("node", [False, True])
def test_a_parent_that_is_already_gone_is_noticed_at_once(tmp_path: Path, node: bool) -> None:
    if node:  # Node's pipes are sockets
        ours, theirs = socket.socketpair()
        ours.close()
        write = theirs.detach()
    else:
        read, write = os.pipe()
        os.close(read)
    environment = bridge_environment(tmp_path, tmp_path / "s.sock")
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT)], stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
            env=environment, timeout=10,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# --- configuration --------------------------------------------------------------------------------------------


def test_the_log_says_where_each_setting_comes_from(start_bridge: StartBridge) -> None:
    bridge = start_bridge(environ={"VLMD_BATCH_SIZE": "3", "ESCRIBANO_VLM_BATCH_SIZE": "2"}).wait_ready()
    assert bridge.stop() == 0
    eventually(lambda: bridge.stderr, what="the log")
    assert bridge.stderr[0] == (
        "[MLX] model fake (environment ESCRIBANO_VLM_MODEL), batch_size 3 (environment VLMD_BATCH_SIZE), "
        "max_tokens 2000 (built-in), mode parallel (built-in), "
        f"socket {bridge.socket_path} (environment ESCRIBANO_MLX_SOCKET_PATH)"
    )


def test_debug_lines_with_escribano_verbose(start_bridge: StartBridge, pictures: list[str]) -> None:
    bridge = start_bridge(environ={"ESCRIBANO_VERBOSE": "true"}).wait_ready()
    with bridge.connect() as connection:
        until_done(connection, 1, "describe_images", images=_images(pictures, 1))
    bridge.stop()
    eventually(lambda: any("debug:" in line for line in bridge.stderr), what="a debug line")
    assert all(line.startswith("[MLX] ") for line in bridge.stderr)


def test_sizes_that_a_request_leaves_out(start_bridge: StartBridge, pictures: list[str]) -> None:
    bridge = start_bridge(environ={"ESCRIBANO_VLM_BATCH_SIZE": "2"}).wait_ready()
    with bridge.connect() as connection:
        assert len(until_done(connection, 1, "describe_images", images=_images(pictures, 6))) == 3


def test_the_socket_is_where_the_adapter_connects() -> None:
    assert str(socket_path({"VLMD_SOCKET": "/elsewhere"})) == DEFAULT_SOCKET
    assert str(socket_path({"ESCRIBANO_MLX_SOCKET_PATH": "/tmp/x/../y"})) == "/tmp/y"


# --- the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("how", ["named", "home", "virtual environment"])
def test_an_interpreter_without_engine_is_replaced(
    start_bridge: StartBridge, bare_python: str, tmp_path: Path, how: str
) -> None:
    environ = {"PYTHONPATH": "", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VIRTUAL_ENV": ""}
    if how == "named":
        environ["ESCRIBANO_PYTHON_PATH"] = sys.executable
    elif how == "home":
        (tmp_path / ".venv").symlink_to(sys.prefix)
    else:
        environ["VIRTUAL_ENV"] = sys.prefix
    bridge = start_bridge(python=bare_python, environ=environ).wait_ready()
    assert psutil.Process(bridge.process.pid).exe() == os.path.realpath(sys.executable)
    with bridge.connect() as connection:
        assert connection.ask(1, "ping")


def test_no_interpreter_with_an_engine_is_fatal(start_bridge: StartBridge, bare_python: str, tmp_path: Path) -> None:
    # A checkout without an environment of its own, which would be found.
    for name in ("protocol", "clients", "bridge"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "scripts")
    environ = {"PYTHONPATH": "", "PATH": str(tmp_path), "HOME": str(tmp_path), "VIRTUAL_ENV": ""}
    bridge = start_bridge(python=bare_python, script=script, environ=environ)
    line = bridge.start_line()
    assert line["status"] == "fatal"
    assert "pip install 'vlmd[mlx]'" in line["error"]
    assert bridge.process.wait(10) != 0


def test_the_script_itself_is_python_3_9() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("named", [True, False])
def test_an_interpreter_that_is_too_old_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    script = runpy.run_path(str(SCRIPT))
    became: list[list[str]] = []

    def become(command: list[str], environment: dict[str, str]) -> NoReturn:
        became.append(command)
        raise SystemExit

    # Nothing else is there: no environment in the checkout, no other Python on the PATH.
    state = script["_run_newer"].__globals__
    monkeypatch.setitem(state, "ROOT", tmp_path)
    monkeypatch.setitem(state, "_become", become)
    monkeypatch.setenv("PATH", str(tmp_path))
    broken = tmp_path / "python3.13"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    environment = {"ESCRIBANO_PYTHON_PATH": sys.executable} if named else {}
    if named:
        with pytest.raises(SystemExit):
            script["_run_newer"](environment)
        assert became == [[sys.executable, str(SCRIPT)]]
    else:
        assert script["_run_newer"](environment) != 0
        line = json.loads(capsys.readouterr().out)
        assert (line["status"], became) == ("fatal", [])
        assert "3.11 or later" in line["error"]


def test_from_any_folder_and_by_a_link(start_bridge: StartBridge, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "mlx_bridge.py").symlink_to(SCRIPT)
    # The working folder is the host app's: its modules are not ours.
    (tmp_path / "anyio.py").write_text("raise RuntimeError('imported from the working folder')")
    start_bridge(script=Path("scripts/mlx_bridge.py"), cwd=tmp_path, environ={"PYTHONPATH": ""}).wait_ready()


# --- standing by ----------------------------------------------------------------------------------------------


def _second(start_bridge: StartBridge, first: Bridge, **arguments: Any) -> Bridge:
    return start_bridge(socket_path=first.socket_path, **arguments)


def test_the_second_bridge_says_ready_when_the_first_answers_again(
    start_bridge: StartBridge, pictures: list[str]
) -> None:
    first = start_bridge().wait_ready()
    began_s = time.monotonic()
    second = _second(start_bridge, first)  # removes the socket first, as the adapter does
    line = second.start_line()
    took_s = time.monotonic() - began_s
    print(f"\nthe second bridge was ready after {took_s:.2f} s")
    assert (line["status"], line["pid"]) == ("ready", first.process.pid)
    assert took_s < 3
    with second.connect() as connection:
        assert len(results(until_done(connection, 1, "describe_images", images=_images(pictures, 6)))) == 6
    assert second.stop() == 0
    with first.connect() as connection:
        assert connection.ask(1, "ping")


def test_ready_waits_for_the_first_ones_model(start_bridge: StartBridge) -> None:
    first = start_bridge(model="fake:load_s=1.5")
    eventually(first.socket_path.exists, what="the socket")
    second = _second(start_bridge, first)
    assert second.start_line()["status"] == "ready"
    with second.connect() as connection:
        assert connection.ask(1, "ping")[0]["result"]["state"] == "ready"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_second_takes_over(start_bridge: StartBridge, pictures: list[str], how: signal.Signals) -> None:
    first = start_bridge().wait_ready()
    second = _second(start_bridge, first).wait_ready()
    began_s = time.monotonic()
    first.process.send_signal(how)
    first.process.wait(10)

    def pid() -> int:
        try:
            with second.connect() as connection:
                return int(connection.ask(1, "status")[0]["result"]["pid"])
        except (OSError, EOFError):
            return 0

    eventually(lambda: pid() == second.process.pid, what="the second's own socket")
    print(f"\ntaken over {time.monotonic() - began_s:.2f} s after {how.name}")
    with second.connect() as connection:
        assert len(until_done(connection, 1, "describe_images", images=_images(pictures, 8))) == 2
    assert second.stop() == 0
    assert not second.socket_path.exists()


def test_one_that_stands_by_ends_with_its_parent(start_bridge: StartBridge, tmp_path: Path) -> None:
    first = start_bridge().wait_ready()
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)\n"
        "time.sleep(600)"
    )
    environment = bridge_environment(tmp_path, first.socket_path)
    parent = subprocess.Popen([sys.executable, "-c", code, str(SCRIPT)], env=environment)
    try:
        eventually(lambda: psutil.Process(parent.pid).children(), what="the second bridge")
        (second,) = psutil.Process(parent.pid).children()
        time.sleep(1.0)  # it stands by now, or is about to: both must end
        parent.kill()
        parent.wait()
        eventually(lambda: gone([second]), 2, "its end")
    finally:
        parent.kill()
        parent.wait()
    with first.connect() as connection:
        assert connection.ask(1, "ping")


def test_a_daemon_that_would_lose_the_last_batch_is_not_stood_by(
    start_bridge: StartBridge, start_daemon: StartDaemon
) -> None:
    holder = start_daemon().wait_ready()
    bridge = start_bridge(socket_path=holder.socket_path)
    line = bridge.start_line()
    assert line["status"] == "fatal"
    assert "--adr-socket" in line["error"]
    assert bridge.process.wait(5) == 2
    eventually(lambda: holder.socket_path.exists() and holder.ask("ping"), 2)


def test_a_holder_of_both_paths_is_stood_by(start_bridge: StartBridge, start_daemon: StartDaemon) -> None:
    holder = start_daemon().wait_ready()
    path = holder.folder / "adr.sock"
    both = start_daemon("--adr-socket", str(path)).wait_ready()
    line = start_bridge(socket_path=path).start_line()
    assert (line["status"], line["pid"]) == ("ready", both.process.pid)
