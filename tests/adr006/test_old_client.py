"""ADR-006's adapter, unmodified, gets its answers from `scripts/mlx_bridge.py` and leaves nothing behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.adr006.conftest import StartClient
from tests.adr006.old_client import OldClient
from tests.support.daemon import eventually, gone

# What its type of a frame has, besides `raw_response`, which is there where parsing fails.
_FIELDS = {"index", "timestamp", "activity", "description", "apps", "topics", "imagePath"}

# Characters of two, three and four bytes.
_WIDE = "ä€\U0001f600"

# It kills its bridge at exit; a killed host app cannot.
_GONE_S = 2.0


def _check_twelve(outcome: dict[str, Any], paths: list[str]) -> None:
    assert [(call["frames"], call["current"], call["total"]) for call in outcome["callbacks"]] == [
        (4, 4, 12),
        (4, 8, 12),
        (4, 12, 12),
    ]
    assert [(frame["index"], frame["imagePath"], frame["timestamp"]) for frame in outcome["results"]] == [
        (i, path, 10.0 * i) for i, path in enumerate(paths)
    ]
    assert all(frame.keys() == _FIELDS for frame in outcome["results"])


def _left(client: OldClient) -> list[str]:
    return [path.name for path in client.folder.iterdir() if path.name not in {"log", "s.sock.lock"}]


def test_what_it_needs(start_client: StartClient, pictures: list[str], tmp_path: Path) -> None:
    """12 for 12 twice on one connection, an error to read, 3 for 3 with one missing, and nothing left."""
    client = start_client()
    first = client.describe(pictures[:12])
    _check_twelve(first, pictures[:12])
    again = client.describe(pictures[:12])
    _check_twelve(again, pictures[:12])
    assert again["results"] == first["results"]
    refused = client.run(images=[])
    assert refused == {"error": "Expected `array` of length >= 1 - at `params.images`."}
    missing = [pictures[0], str(tmp_path / "missing.png"), pictures[2]]
    outcome = client.describe(missing)
    assert [frame["imagePath"] for frame in outcome["results"]] == missing
    assert [frame.get("code") for frame in outcome["results"]] == [None, "image_not_found", None]
    assert all(frame["description"] for frame in outcome["results"])
    family = client.family()
    assert len(family) == 4  # itself, the bridge, an engine worker, an image process
    assert client.quit() == 0
    began_s = time.monotonic()
    eventually(lambda: gone(family), 5, "the end of every process")
    print(f"\nnothing is left {time.monotonic() - began_s:.2f} s after the host app")
    assert not _left(client)


def test_text_beyond_ascii_survives_its_decoding(start_client: StartClient, tmp_path: Path) -> None:
    """It decodes each chunk by itself: a character in two chunks would break, so none is ever two bytes long."""
    paths = []
    for i in range(400):
        path = tmp_path / f"{i}-{_WIDE * 18}.png"
        Image.new("RGB", (64, 64), (i % 256, i // 256, 0)).save(path)
        paths.append(str(path))
    client = start_client(environ={"ESCRIBANO_VLM_BATCH_SIZE": "200"})
    outcome = client.describe(paths)
    assert [frame["imagePath"] for frame in outcome["results"]] == paths


def test_what_is_no_request_is_an_error_and_not_the_end(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client()
    assert "not JSON" in client.run(raw="{nonsense")["error"]
    assert "describe_images" in client.run(raw=json.dumps({"id": 1, "method": "vlm_infer", "params": {}}))["error"]
    assert len(client.describe(pictures[:1])["results"]) == 1


def test_two_host_apps_on_one_path(start_client: StartClient, pictures: list[str]) -> None:
    """The second removes the first's socket and spawns its own bridge; both are answered, also after each other's end.

    Each must be answered while the other lives, the second also after the first has gone.
    """
    first = start_client()
    _check_twelve(first.describe(pictures[:12]), pictures[:12])
    second = start_client(folder=first.folder)
    began_s = time.monotonic()
    _check_twelve(second.describe(pictures[:12]), pictures[:12])
    print(f"\nthe second host app had its 12 frames {time.monotonic() - began_s:.2f} s after its start")
    bridges = {first.bridge_pid(), second.bridge_pid()}
    assert len(bridges) == 2
    assert None not in bridges
    first.send(images=[{"imagePath": path, "timestamp": 10.0 * i} for i, path in enumerate(pictures[:12])])
    _check_twelve(second.describe(pictures[:12]), pictures[:12])
    _check_twelve(first.outcome(), pictures[:12])
    family = first.family() + second.family()
    assert first.quit() == 0
    outcome: dict[str, Any] = {}

    def answered() -> bool:
        # Its connection was with the first's bridge; it connects again with the next request.
        outcome.update(second.describe(pictures[:12]))
        return "results" in outcome

    eventually(answered, 10, "an answer of the bridge that took over")
    _check_twelve(outcome, pictures[:12])
    assert second.bridge_pid() in bridges
    assert second.quit() == 0
    eventually(lambda: gone(family), 5, "the end of every process")
    assert not _left(first)


def test_a_second_host_app_does_not_disturb_a_request_under_way(start_client: StartClient, pictures: list[str]) -> None:
    first = start_client(model="fake:step_ms=10,tokens=40,width=4")
    first.describe(pictures[:1])
    first.send(images=[{"imagePath": path, "timestamp": 10.0 * i} for i, path in enumerate(pictures[:12])])
    second = start_client(folder=first.folder)
    _check_twelve(second.describe(pictures[:12]), pictures[:12])
    _check_twelve(first.outcome(), pictures[:12])
    # The one that only stood by ends; the first goes on.
    assert second.quit() == 0
    _check_twelve(first.describe(pictures[:12]), pictures[:12])


@pytest.mark.parametrize("when", ["loading", "idle", "running"])
def test_kill_9_of_the_host_app(start_client: StartClient, pictures: list[str], when: str) -> None:
    models = {"loading": "fake:load_s=20", "idle": "fake", "running": "fake:step_ms=20,tokens=200"}
    client = start_client(model=models[when])
    client.send(images=[{"imagePath": path, "timestamp": 0.0} for path in pictures])
    if when == "idle":
        client.outcome()
    eventually(client.socket_path.exists, 20, "the bridge's socket")
    eventually(lambda: len(client.family()) == 4, 10, "the workers")
    if when == "running":
        eventually(lambda: _running(client) > 0, 10, "frames under way")
    family = client.family()
    client.process.kill()
    client.process.wait()
    began_s = time.monotonic()
    eventually(lambda: gone(family), 10, "the end of the bridge")
    took_s = time.monotonic() - began_s
    print(f"\nthe bridge is gone {took_s:.2f} s after its host app ({when})")
    assert took_s < _GONE_S
    assert not _left(client)


def test_kill_9_right_after_the_spawn(start_client: StartClient, pictures: list[str]) -> None:
    """Before the bridge knows who its parent is."""
    client = start_client(model="fake:load_s=20")
    client.send(images=[{"imagePath": pictures[0], "timestamp": 0.0}])
    process = psutil.Process(client.process.pid)
    eventually(process.children, 10, "the bridge")
    family = process.children()
    client.process.kill()
    client.process.wait()
    eventually(lambda: gone(family), _GONE_S, "the end of the bridge")
    assert not _left(client)


def _running(client: OldClient) -> int:
    from tests.support.daemon import Connection

    with Connection(client.socket_path) as connection:
        return int(connection.ask(1, "status")[0]["result"]["queue"]["running"])
