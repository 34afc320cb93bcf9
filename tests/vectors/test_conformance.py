"""The conformance runner itself: what it passes, what it fails and why, and that it runs from a wheel alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from vlmd_protocol.conformance import CaseFailed, Player
from vlmd_protocol.conformance.__main__ import main
from vlmd_protocol.conformance.match import mismatch
from vlmd_protocol.conformance.run import choose
from vlmd_protocol.fake_server import Dialogue, FakeServer, obedient, scripted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-v-", dir="/tmp"))
    yield folder / "s"
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ({}, {"a": 1}),
        ({"a": 1}, {"a": 1.0, "b": 2}),
        ({"a": {"$absent": True}}, {}),
        ({"a": {"$any": True}}, {"a": None}),
        ({"$only": True, "a": 1}, {"a": 1}),
        ([1, {"b": 2}], [1, {"b": 2, "c": 3}]),
        ({"$type": "integer"}, 1),
        ({"$type": "boolean"}, True),
        ({"$contains": "b"}, "abc"),
        ({"$contains": "b"}, ["a", "b"]),
        ({"$length": 2}, [1, 2]),
        ({"$min": 1}, 1),
        ({"$one_of": [1, "a"]}, "a"),
        (None, None),
    ],
)
def test_patterns_that_match(pattern: Any, value: Any) -> None:
    assert mismatch(pattern, value) is None


@pytest.mark.parametrize(
    ("pattern", "value", "why"),
    [
        ({"a": 1}, {}, "line.a is missing"),
        ({"a": 1}, {"a": 2}, "line.a is 2, not 1"),
        ({"a": 1}, {"a": True}, "line.a is True, not 1"),
        ({"a": True}, {"a": 1}, "line.a is 1, not True"),
        ({"a": {"$absent": True}}, {"a": None}, "line.a is there"),
        ({"a": {"$any": True}}, {}, "line.a is missing"),
        ({"$only": True, "a": 1}, {"a": 1, "c": 2, "b": 3}, "line has b, c too"),
        ([1], [1, 2], "not an array of 1"),
        ([{"b": 2}], [{"b": 3}], "line[0].b is 3"),
        ({"a": 1}, [], "not an object"),
        ({"$type": "integer"}, True, "not $type"),
        ({"$type": "integer"}, 1.5, "not $type"),
        ({"$min": 1}, 0, "not $min"),
        ({"$min": 1}, "5", "not $min"),
        ({"$contains": "x"}, 5, "not $contains"),
        ({"$length": 2}, "a", "not $length"),
        ({"$one_of": [1, 2]}, 3, "not $one_of"),
        (None, 0, "line is 0"),
        ("1", 1, "line is 1"),
    ],
)
def test_patterns_that_do_not(pattern: Any, value: Any, why: str) -> None:
    found = mismatch(pattern, value)
    assert found is not None
    assert why in found


def fails(path: Path, folder: Path, server: Dialogue, *steps: dict[str, Any], **case: Any) -> str:
    with FakeServer(path, server), pytest.raises(CaseFailed) as caught:
        Player(str(path), folder, timeout_s=0.3).play({"name": "x", "steps": list(steps), **case})
    return str(caught.value)


PING = {"send": {"id": 1, "method": "ping"}}
PONG = '{"id":1,"result":{},"done":true}\n'


def says(data: Any) -> Dialogue:
    return scripted([{"expect": "*"}, {"bytes": data}, {"stall": True}])


@pytest.mark.parametrize(
    ("data", "step", "why"),
    [
        (PONG, {"expect": {"id": 2}}, "step 2, expect: line.id is 1, not 2"),
        ("", {"expect": {}}, "nothing came within 0.3 s"),
        (PONG + PONG, {"expect_close": True}, "a line came"),
        (PONG, {"expect_silence_ms": 100}, "a line came"),
        ("hello\n", {"expect": {}}, "the server sent b'hello'"),
        ("[]\n", {"expect": {}}, "which is no object"),
        ({"hex": "ff0a"}, {"expect": {}}, "the server sent"),
        ('{"id":3}\n', {"expect_each": [{"id": 1}]}, "nothing expects"),
        ('{"id":1,"batch":2}\n', {"expect_end": {"id": 1}, "before": {"batch": 1}}, "line.batch is 2"),
        ('{"id":1,"text":"a","done":true}\n', {"expect_text": {"id": 1}}, "no delta came"),
        ('{"id":1,"delta":"b"}\n{"id":1,"text":"a","done":true}\n', {"expect_text": {"id": 1}}, "the deltas are 'b'"),
    ],
)
def test_a_server_that_does_otherwise_fails(path: Path, tmp_path: Path, data: Any, step: Any, why: str) -> None:
    assert why in fails(path, tmp_path, says(data), PING, step)


def test_half_a_line_before_the_end_fails(path: Path, tmp_path: Path) -> None:
    server = scripted([{"expect": "*"}, {"bytes": '{"id":1'}])
    assert "in the middle of a line" in fails(path, tmp_path, server, PING, {"expect_close": True})


def test_a_byte_beyond_ascii_fails_where_it_matters(path: Path, tmp_path: Path) -> None:
    assert "not ASCII" in fails(path, tmp_path, says('{"id":"é"}\n'), PING, {"expect": {}}, ascii=True)


def test_an_event_counts_only_where_the_case_says_so(path: Path, tmp_path: Path) -> None:
    event = '{"event":"draining"}\n'
    assert "a line came" in fails(path, tmp_path, says(event), PING, {"expect_silence_ms": 100}, events=True)
    with FakeServer(path, says(event + PONG)):
        Player(str(path), tmp_path).play({"name": "x", "steps": [PING, {"expect": {"id": 1}}]})


def test_the_command_prints_a_table_and_fails_with_the_server(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(path, obedient()):
        assert main(["--socket", str(path), "--filter", "lifecycle.jsonl#ping", "--timeout", "1"]) == 0
        assert "1 cases: 1 passed, 0 failed, 0 skipped" in capsys.readouterr().out
        assert main(["--socket", str(path), "--filter", "*#hello-of-an-unknown-protocol", "--timeout", "1"]) == 1
        out = capsys.readouterr().out
        assert "dialogue/order.jsonl#hello-of-an-unknown-protocol  fail  step 2, expect: line.error is missing" in out
        assert main(["--socket", str(path), "--filter", "#plain-17th", "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["counts"] == {"skip": 1}
        assert made["cases"][0]["why"] == "needs model, slow"


def test_the_command_says_what_stops_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(path)]) == 3
    assert main(["--socket", str(path), "--filter", "of tomorrow"]) == 2
    assert "no server answers" in capsys.readouterr().err


def test_it_runs_from_a_wheel_with_nothing_but_msgspec(tmp_path: Path, start_daemon: Any) -> None:
    """Promise: an implementer needs the wheel alone. Prints how many cases were played."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    package = tmp_path / "site" / "vlmd_protocol"
    assert json.loads((package / "schema" / "v1.json").read_text())["$id"] == "urn:vlmd:protocol:1"
    assert (package / "vectors" / "v1" / "README.md").exists()
    daemon: Daemon = start_daemon().wait_ready()
    code = (
        "import sys, runpy\n"
        "sys.modules['anyio'] = None\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        f"sys.argv[1:] = ['--socket', {str(daemon.socket_path)!r}, '--json', '--filter', 'dialogue/order']\n"
        "import vlmd_protocol\n"
        f"assert vlmd_protocol.__file__.startswith({str(tmp_path)!r})\n"
        "runpy.run_module('vlmd_protocol.conformance', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)["counts"]
    print(f"\nfrom the wheel: {counts}")
    assert counts["pass"] >= 10


def test_cases_can_be_chosen() -> None:
    assert {name for name, _ in choose("dialogue/cancel")} == {name for name, _ in choose("dialogue/cancel.jsonl#*")}
    assert choose("of tomorrow") == []
