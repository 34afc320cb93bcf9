"""Promise 16: ADR-006's golden dialogues replay through a re-creation of the old client's parsing rules, however the
bytes are cut.

``tests/adr006`` drives the adapter itself, in Node; here its rules are followed byte for byte.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.faults.figures import figure
from tests.support.daemon import Connection, Daemon
from vlmd_protocol.vectors import Case, load, to_bytes

_PICTURE = re.compile(r"\$\{picture:(\d+)\}")


class OldParser:
    """Reads as ADR-006's adapter does, whatever is wrong with it.

    Each chunk is decoded by itself; every line is the reply, whatever its id; any `error` that is true ends the
    request, and only a true `done` completes it; what else stands on that line is thrown away.
    """

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.error: str | None = None
        self.done = False
        self._buffer = ""

    @property
    def over(self) -> bool:
        """Whether the request has ended, well or not."""
        return self.done or self.error is not None

    def receive(self, chunk: bytes) -> None:
        """Take what one read gave."""
        self._buffer += chunk.decode("utf-8", errors="replace")
        *lines, self._buffer = self._buffer.split("\n")
        for text in lines:
            if not text.strip() or self.over:
                continue
            line = json.loads(text)
            if line.get("error"):
                assert isinstance(line["error"], str)
                self.error = line["error"]
            elif line.get("done"):
                self.done = True
            else:
                self.results += line.get("results", [])


@pytest.fixture(scope="module")
def adr_daemon() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
    daemon = Daemon("--adr-socket", str(folder / "adr.sock"), folder=folder).wait_ready()
    yield daemon
    daemon.close()


def requests_of(case: Case, pictures: list[str]) -> list[bytes]:
    """Return the lines that a dialogue's client sends, the pictures put in."""
    found = []
    for step in case["steps"]:
        for key in ("send", "send_bytes", "send_all"):
            if key in step and step.get("on", "main") == "main":
                many = step[key] if key == "send_all" else [step[key]]
                found += [to_bytes(one) if key == "send_bytes" else json.dumps(one).encode() for one in many]
    filled = b"\n".join(line.rstrip(b"\n") for line in found)
    text = _PICTURE.sub(lambda match: pictures[int(match[1])], filled.decode())
    return [line.encode() for line in text.split("\n")]


def raw_answer(path: Path, request: bytes) -> bytes:
    """Return the bytes that the daemon says to `request`, up to the end of the connection."""
    with Connection(path) as connection:
        connection.send_bytes(request + b"\n")
        connection.socket.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.socket.recv(1 << 16), b""))


def test_golden_dialogues(adr_daemon: Daemon, pictures: list[str]) -> None:
    replays = completed = failed = 0
    dialogues = [case for name in ("adr006/dialogues", "adr006/separate_done") for case in load(name)]
    for case in dialogues:
        for request in requests_of(case, pictures):
            if b'"hello"' in request:
                continue  # which the old client never says
            answer = raw_answer(adr_daemon.folder / "adr.sock", request)
            assert answer.isascii(), case["name"]
            for size in (1, 7, len(answer)):
                parser = OldParser()
                for start in range(0, len(answer), size):
                    parser.receive(answer[start : start + size])
                assert parser.over, f"{case['name']}: the old client would wait for ever"
                replays += 1
                if parser.done and b"describe_images" in request:
                    completed += 1
                    paths = [image["imagePath"] for image in json.loads(request)["params"]["images"]]
                    assert [result["imagePath"] for result in parser.results] == paths, case["name"]
                failed += parser.error is not None
    figure("16", dialogues=len(dialogues), replays=replays, completed=completed, told_an_error=failed, frames_lost=0)
    assert completed > 0
    assert failed > 0


def test_the_plain_form_would_lose_the_last_batch(start_daemon: StartDaemon, pictures: list[str]) -> None:
    """Why the old client has a listener of its own: its parser is really as strict as that."""
    daemon = start_daemon().wait_ready()
    request = {
        "id": 1,
        "method": "describe_images",
        "params": {"images": [{"imagePath": path} for path in pictures[:6]]},
    }
    parser = OldParser()
    parser.receive(raw_answer(daemon.socket_path, json.dumps(request).encode()))
    assert (parser.done, len(parser.results)) == (True, 4)
