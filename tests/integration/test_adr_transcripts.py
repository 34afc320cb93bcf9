"""ADR-006's example exchanges against the live daemon: the same keys, the same types, nothing more.

``tests/data/adr006.ndjson`` holds the lines of the ADR: a request, three batch lines, an error line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon

REQUEST, *BATCHES, ERROR = (
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "adr006.ndjson").read_text().splitlines()
)

# The ADR's TypeScript type of a result; raw_response "only present when parsing fails".
RESULT_TYPES = {
    "index": int,
    "timestamp": float,
    "activity": str,
    "description": str,
    "apps": list,
    "topics": list,
    "imagePath": str,
}


def _types(value: dict[str, Any]) -> dict[str, type]:
    return {key: type(item) for key, item in value.items()}


@pytest.mark.parametrize("mode", [{}, {"mode": "interleaved"}])
def test_twelve_frames_give_the_adrs_three_lines(daemon: Daemon, pictures: list[str], mode: dict[str, str]) -> None:
    images = [{"imagePath": path, "timestamp": 42.5 + i} for i, path in enumerate(pictures[:12])]
    request = {**REQUEST, "params": {**REQUEST["params"], "images": images, **mode}}
    with daemon.connect() as connection:
        connection.send_bytes(json.dumps(request).encode() + b"\n")
        lines = connection.answer()
    assert [{**line, "results": []} for line in lines] == BATCHES
    for line, golden in zip(lines, BATCHES, strict=True):
        assert list(line) == list(golden)
        assert _types(line["progress"]) == _types(golden["progress"])
    results = [result for line in lines for result in line["results"]]
    assert [_types(result) for result in results] == [RESULT_TYPES] * 12
    assert [(result["index"], result["imagePath"], result["timestamp"]) for result in results] == [
        (i, image["imagePath"], image["timestamp"]) for i, image in enumerate(images)
    ]
    assert all(isinstance(item, str) for result in results for item in result["apps"] + result["topics"])


def test_the_adrs_request_itself_is_answered_frame_by_frame(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        connection.send_bytes(json.dumps(REQUEST).encode() + b"\n")
        (line,) = connection.answer()
    assert [result["code"] for result in line["results"]] == ["image_not_found"] * 2
    assert (line["partial"], line["done"]) == (False, True)
    # Its client ends the whole request at any truthy top-level `error`.
    assert "error" not in line
    for result in line["results"]:
        assert RESULT_TYPES.items() <= _types(result).items()
        assert result["description"]
        assert result["activity"]


def test_a_failed_request_has_the_adrs_error_line(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        (line,) = connection.ask(123, "describe_images", images=[])
    assert line["id"] == ERROR["id"]
    assert isinstance(line["error"], str)
    assert line.keys() >= ERROR.keys()
    assert line["done"] is True


def test_nothing_unasked_and_only_ascii_without_hello(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(model="fake:load_s=0.5").wait_bound()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": str(tmp_path / "Füße \U0001f600.png")}])
        data = connection.socket.recv(65536)
    assert data.isascii()
    line = json.loads(data)
    assert line["results"][0]["imagePath"].endswith("Füße \U0001f600.png")
