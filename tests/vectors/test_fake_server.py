"""The fake server's scripts and its command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Connection
from vlmd_protocol.fake_server import FakeServer, ScriptError, load_script, scripted


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-v-", dir="/tmp"))
    yield folder / "s"
    shutil.rmtree(folder)


def play(path: Path, *steps: dict[str, Any], requests: int = 1) -> bytes:
    """Send `requests` and return all that comes until the server closes."""
    with FakeServer(path, scripted(list(steps))) as server, Connection(path) as connection:
        for number in range(requests):
            connection.send(7 + number, "describe_images", images=[{"imagePath": f"/{i}.png"} for i in range(6)])
        connection.half_close()
        data = b"".join(iter(lambda: connection.socket.recv(65536), b""))
        assert server.complaints == []
    return data


def test_lines_carry_the_id_of_the_request(path: Path) -> None:
    data = play(path, {"expect": "*"}, {"line": {"id": "${id}", "result": {"same": ["${id}"]}, "done": True}})
    assert json.loads(data) == {"id": 7, "result": {"same": [7]}, "done": True}


def test_answers_and_refusals(path: Path) -> None:
    refusal = {"code": "busy", "error": "No.", "retryable": True, "data": {"retryAfterMs": 5}}
    data = play(path, {"expect": "*"}, {"answer": {"a": 1}}, {"expect": "*"}, {"refuse": refusal}, requests=2)
    first, second = map(json.loads, data.splitlines())
    assert first == {"id": 7, "result": {"a": 1}, "done": True}
    assert second == {"id": 8, **refusal, "done": True}


def test_batches_stop_where_the_script_says(path: Path) -> None:
    data = play(path, {"expect": "describe_images"}, {"batches": 1}, {"bytes": '{"id":7,"ba'})
    first, half = data.split(b"\n")
    assert json.loads(first)["progress"] == {"current": 4, "total": 6}
    assert half == b'{"id":7,"ba'


def test_all_batches(path: Path) -> None:
    data = play(path, {"expect": "describe_images"}, {"batches": 1}, {"delay_ms": 1}, {"batches": -1})
    assert [json.loads(line).get("done") for line in data.splitlines()] == [None, True]


def test_a_drip_is_the_same_bytes(path: Path) -> None:
    assert play(path, {"expect": "*"}, {"bytes": "é\n", "drip_ms": 1}) == "é\n".encode()


def test_a_line_over_the_limit(path: Path) -> None:
    assert len(play(path, {"bytes": {"repeat": "x", "times": 33_554_433}}, requests=0)) == 33_554_433


def test_an_unexpected_method_is_told(path: Path) -> None:
    with FakeServer(path, scripted([{"expect": "hello"}])) as server, Connection(path) as connection:
        connection.send(1, "ping")
        assert list(connection.lines()) == []
        assert server.complaints == ["expected hello, got ping"]


@pytest.mark.parametrize("line", ["hello", "[]", '{"id":1}', '{"id":1,"method":"cancel","params":{}}', "[" * 5000])
def test_what_no_client_may_send_is_told(path: Path, line: str) -> None:
    with FakeServer(path) as server, Connection(path) as connection:
        connection.send_bytes(line.encode() + b"\n")
        assert list(connection.lines()) == []
        (complaint,) = server.complaints
        assert complaint.startswith("the client sent")


@pytest.mark.parametrize("steps", [[{"dance": 1}], [{}], [{"stall": True, "close": True}]])
def test_a_step_is_one_of_those_there_are(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(ScriptError, match="a step has one of expect"):
        scripted(steps)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{\n", '{"step": []}\n', '{"steps": [{"dance": 1}]}\n', "[]\n"])
def test_a_file_that_is_no_script(tmp_path: Path, text: str) -> None:
    (tmp_path / "script").write_text(text)
    with pytest.raises(ScriptError, match="script"):
        load_script(tmp_path / "script")


def command(path: Path, *options: str, script: str = "") -> subprocess.Popen[str]:
    file = path.with_name("script.jsonl")
    file.write_text(script)
    arguments = [sys.executable, "-m", "vlmd_protocol.fake_server", "--socket", str(path), *options]
    arguments += ["--script", str(file)] if script else []
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_command_obeys_without_a_script_and_ends_with_its_owner(path: Path) -> None:
    with command(path, "--owned", "--echo") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        ready = json.loads(process.stdout.readline())
        assert (ready["status"], ready["pid"]) == ("ready", process.pid)
        with Connection(path) as connection:
            assert connection.ask(1, "ping")[0]["result"]["state"] == "ready"
        assert json.loads(process.stdout.readline())["method"] == "ping"
        process.stdin.close()
        assert process.wait(10) == 0
    assert not path.exists()


def test_the_command_dies_as_a_daemon_would(path: Path) -> None:
    script = '# half a line, then a death\n{"steps": [{"expect": "*"}, {"bytes": "{"}, {"die": 9}]}\n'
    with command(path, script=script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Connection(path) as connection:
            connection.send(1, "ping")
            assert connection.socket.recv(10) == b"{"
            assert connection.socket.recv(10) == b""
        assert process.wait(10) == 9
    # A crash leaves its socket behind.
    assert path.exists()


def test_the_command_tells_start_up_lines(path: Path) -> None:
    read, write = os.pipe()
    arguments = [sys.executable, "-m", "vlmd_protocol.fake_server", "--socket", str(path), "--ready-fd", str(write)]
    with subprocess.Popen(arguments, pass_fds=(write,), stdout=subprocess.DEVNULL) as process, os.fdopen(read) as ready:
        os.close(write)
        assert [json.loads(ready.readline())["status"] for _ in range(2)] == ["bound", "ready"]
        process.terminate()
        assert process.wait(10) == 0


def test_the_command_refuses_a_bad_script(path: Path) -> None:
    with command(path, script="{}\n") as process:
        assert process.wait(10) == 2
