"""ADR-006's error table, row by row: what its adapter, and who sits at the socket by hand, gets.

=====================  ===================================================
Error type             Behavior
=====================  ===================================================
Bridge not running     Auto-start, throw if fails
Connection refused     Throw error
Bridge crash           Throw error
Image load failure     Error response, continue batch
Parse failure          Store raw VLM response, continue batch
Invalid response       Throw error
Socket timeout         Throw error
=====================  ===================================================
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.adr006.bridge import until_done
from tests.adr006.conftest import StartBridge, StartClient
from tests.support.daemon import eventually, gone

# A batch of four takes 2 s: longer than a client below is willing to wait.
_SLOW = "fake:step_ms=50,tokens=40,width=4"


def test_bridge_not_running_is_an_auto_start(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client()
    assert client.bridge_pid() is None
    assert not client.socket_path.exists()
    assert len(client.describe(pictures[:2])["results"]) == 2
    assert client.bridge_pid() is not None


@pytest.mark.parametrize(
    ("model", "environ", "message"),
    [
        ("fake:broken=1", {}, "MLX bridge failed: fake backend: asked to fail its load"),
        ("/nowhere/at/all", {}, "MLX bridge failed: '/nowhere/at/all' is no folder"),
        ("fake", {"ESCRIBANO_VLM_MAX_TOKENS": "lots"}, "MLX bridge failed: environment ESCRIBANO_VLM_MAX_TOKENS"),
        ("fake", {"ESCRIBANO_PYTHON_PATH": "/nowhere/python"}, "Failed to start MLX bridge"),
    ],
)
def test_bridge_not_running_throws_if_the_start_fails(
    start_client: StartClient, pictures: list[str], model: str, environ: dict[str, str], message: str
) -> None:
    client = start_client(model=model, environ=environ)
    assert client.describe(pictures[:1])["error"].startswith(message)
    eventually(lambda: not client.socket_path.exists(), 10, what="the end of the bridge")


def test_connection_refused_throws(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client()
    client.describe(pictures[:1])
    pid = client.bridge_pid()
    assert pid is not None
    client.run(disconnect=True)
    bridge = psutil.Process(pid)
    bridge.suspend()  # else it would have its path back before we are there
    try:
        client.socket_path.unlink()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(client.socket_path))
        assert "ECONNREFUSED" in client.describe(pictures[:1])["error"]
        client.socket_path.unlink()
        assert "ENOENT" in client.describe(pictures[:1])["error"]
    finally:
        bridge.resume()
    eventually(client.socket_path.exists, 2, "the path")
    assert len(client.describe(pictures[:1])["results"]) == 1
    assert client.bridge_pid() == pid


def test_bridge_crash_throws_and_the_next_call_starts_another(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client(model="fake:step_ms=20,tokens=40,width=4")
    client.describe(pictures[:1])
    client.send(images=[{"imagePath": path, "timestamp": 0.0} for path in pictures])
    bridge, *workers = client.family()[1:]
    bridge.kill()
    # A process killed with a request unread resets its connection; one that had read it all only ends it.
    assert client.outcome()["error"] in (
        "MLX bridge closed the connection",
        "MLX bridge connection failed: read ECONNRESET",
    )
    # Nobody cleans up by hand: workers end by themselves, the stale socket is replaced.
    eventually(lambda: gone(workers), 2, "the end of the workers")
    eventually(lambda: client.bridge_pid() is None, 2, "the adapter's knowledge of it")
    assert len(client.describe(pictures[:4])["results"]) == 4
    assert client.bridge_pid() != bridge.pid


def test_image_load_failure_is_that_frames_error_and_the_batch_goes_on(
    start_client: StartClient, pictures: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(pictures[1]).read_bytes()[:60])
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    bad = [str(tmp_path / "missing.png"), str(tmp_path), str(empty), str(text), str(broken), "relative.png", ""]
    paths = [path for pair in zip(bad, pictures, strict=False) for path in pair]
    client = start_client()
    outcome = client.describe(paths)
    frames = outcome["results"]
    assert [frame["imagePath"] for frame in frames] == paths
    assert [frame.get("code") for frame in frames[::2]] == [
        "image_not_found",
        "image_not_a_file",
        "image_empty",
        "image_invalid",
        "image_invalid",
        "image_path_relative",
        "image_path_relative",
    ]
    for frame in frames[::2]:
        assert frame["error"]
        assert frame["description"]  # it reads them as strings without looking
        assert frame["activity"]
        assert (frame["apps"], frame["topics"]) == ([], [])
    assert not any("error" in frame for frame in frames[1::2])
    assert [call["current"] for call in outcome["callbacks"]] == [4, 8, 12, 14]


@pytest.mark.parametrize("mode", ["parallel", "interleaved"])
def test_parse_failure_keeps_the_raw_response_and_the_batch_goes_on(
    start_client: StartClient, pictures: list[str], mode: str
) -> None:
    # Only without its grammar does the engine write anything but records.
    images = [{"imagePath": path, "timestamp": 1.0} for path in pictures[:6]]
    outcome = start_client().run(images=images, params={"grammar": False, "mode": mode})
    assert len(outcome["results"]) == 6
    assert len(outcome["callbacks"]) == 2
    for frame in outcome["results"]:
        assert isinstance(frame["raw_response"], str)
        assert frame["description"]
    if mode == "parallel":
        assert all(frame["raw_response"].startswith("Picture ") for frame in outcome["results"])


def test_no_raw_response_where_parsing_succeeds(start_client: StartClient, pictures: list[str]) -> None:
    assert not any("raw_response" in frame for frame in start_client().describe(pictures[:4])["results"])


def test_invalid_response_throws(start_client: StartClient, pictures: list[str], tmp_path: Path) -> None:
    """What the adapter does with one, from a bridge that is not vlmd's."""
    stub = tmp_path / "stub.py"
    stub.write_text(
        "import os, socket\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(os.environ['ESCRIBANO_MLX_SOCKET_PATH'])\n"
        "listener.listen()\n"
        'print(\'{"status": "ready"}\', flush=True)\n'
        "connection, _ = listener.accept()\n"
        "connection.recv(65536)\n"
        "connection.sendall(b'no JSON at all\\n')\n"
        "connection.recv(65536)\n"
    )
    assert start_client(script=stub).describe(pictures[:1]) == {"error": "Invalid response from MLX bridge"}


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"[]",
        b"null",
        b"{}",
        b'{"id":{},"method":"ping"}',
        b'{"id":1}',
        b'{"id":1,"method":"vlm_infer"}',
        b'{"id":1,"method":"describe_images","params":[]}',
        b'{"id":1,"method":"describe_images","params":{"images":[{}]}}',
        b'{"id":1,"method":"describe_images","params":{"images":[{"imagePath":1}],"batchSize":0}}',
        b'{"id":1,"method":"describe_images","params":{"images":"' + b"\xff" * 9 + b'"}}',
        b"[" * 5000,
    ],
)
def test_the_bridge_never_sends_an_invalid_response(start_bridge: StartBridge, data: bytes) -> None:
    """Whatever comes in, each line that goes out is an object with a string `error`, and `done`."""
    bridge = start_bridge().wait_ready()
    with bridge.connect() as connection:
        connection.send_bytes(data + b"\n")
        line = connection.line()
        assert isinstance(line["error"], str)
        assert line["error"].isprintable()
        assert line["done"] is True
        assert connection.ask(2, "ping")[0]["id"] == 2


def test_socket_timeout_throws_and_frees_the_engine(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client(model=_SLOW, socket_timeout_ms=500)
    assert client.describe(pictures) == {"error": "MLX bridge timed out"}
    from tests.support.daemon import Connection

    with Connection(client.socket_path) as connection:

        def jobs() -> int:
            return int(connection.ask(1, "status")[0]["result"]["queue"]["jobs"])

        eventually(lambda: jobs() == 0, 2, "the end of its job")
        # One that waits longer is served by the same bridge.
        lines = until_done(connection, 2, "describe_images", images=[{"imagePath": pictures[0]}])
    assert len(lines[0]["results"]) == 1


def test_the_end_of_the_host_app_while_it_waits(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client(model=_SLOW)
    images: list[Any] = [{"imagePath": path, "timestamp": 0.0} for path in pictures]
    client.send(images=images)
    eventually(lambda: len(client.family()) == 4, 10, "the workers")
    family = client.family()
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait(5) == 0
    eventually(lambda: gone(family), 5, "the end of the bridge")
    assert not client.socket_path.exists()
