"""Requests by hand against a live daemon: both kinds of connection, bad input, cancel, half-close, hang-up."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually, results
from vlmd_protocol.limits import MAX_FRAME_BYTES

# Slow enough that a job of 48 frames is still under way when the test acts, quick enough for a test.
SLOW = "fake:step_ms=10,tokens=60,width=4"


def _images(paths: list[str]) -> list[dict[str, Any]]:
    return [{"imagePath": path} for path in paths]


def test_48_frames_in_order_each_with_the_text_of_its_own_picture(daemon: Daemon, pictures: list[str]) -> None:
    alone = {path: results(daemon.ask("describe_images", images=_images([path])))[0] for path in pictures[::6]}
    for mode in ("parallel", "interleaved"):
        lines = daemon.ask("describe_images", images=_images(pictures), mode=mode)
        described = results(lines)
        assert [result["imagePath"] for result in described] == pictures
        assert len({result["description"] for result in described}) == 48
        assert [line["batch"] for line in lines] == list(range(1, 13))
        for result in described[::6]:
            assert result["description"] == alone[result["imagePath"]]["description"]


def test_index_and_id_of_the_caller_are_echoed(daemon: Daemon, pictures: list[str]) -> None:
    images = [{"imagePath": pictures[0], "index": 700, "id": "first"}, {"imagePath": pictures[1], "timestamp": 3}]
    first, second = results(daemon.ask("describe_images", images=images))
    assert (first["index"], first["id"], first["timestamp"]) == (700, "first", None)
    assert (second["index"], second["timestamp"]) == (1, 3)
    assert "id" not in second


def test_a_plain_connection_answers_in_order(daemon: Daemon, pictures: list[str]) -> None:
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=_images(pictures[:6]))
        connection.send(2, "ping")
        connection.send(3, "status")
        ids = [line["id"] for _ in range(3) for line in connection.answer()]
    assert ids == [1, 1, 2, 3]


def test_a_negotiated_connection_answers_ping_beside_a_job(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        connection.ask(0, "hello", client={"name": "test"})
        connection.send(1, "describe_images", images=_images(pictures))
        (pong,) = connection.ask(2, "ping")
        assert pong["id"] == 2
        lines = connection.answer()
    assert len(results(lines)) == 48


@pytest.mark.parametrize("negotiated", [False, True])
def test_cancel_ends_the_target_with_one_terminal_line(
    start_daemon: StartDaemon, pictures: list[str], negotiated: bool
) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        if negotiated:
            connection.ask(0, "hello")
        connection.send(1, "describe_images", images=_images(pictures))
        connection.line()
        connection.send(2, "cancel", target=1)
        target = connection.answer()
        (reply,) = connection.answer()
        assert target[-1]["code"] == "cancelled"
        assert (reply["id"], reply["result"]) == (2, {"cancelled": True})
        (again,) = connection.ask(3, "cancel", target=1)
        assert again["result"] == {"cancelled": False}
        # Its slots are free: the next job runs, and nothing of the old one comes after its terminal line.
        assert {line["id"] for line in connection.ask(4, "describe_images", images=_images(pictures[:4]))} == {4}
    eventually(lambda: daemon.status()["queue"] == dict.fromkeys(daemon.status()["queue"], 0), what="an empty queue")


def test_a_waiting_request_can_be_cancelled(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=_images(pictures[:8]))
        connection.send(2, "describe_images", images=_images(pictures[:8]))
        connection.send(3, "cancel", target=2)
        (cancelled,) = connection.answer()
        assert (cancelled["id"], cancelled["code"]) == (2, "cancelled")
        assert connection.answer()[0]["id"] == 3
        assert connection.answer()[-1]["id"] == 1


def test_a_half_closed_client_still_gets_its_reply(daemon: Daemon, pictures: list[str]) -> None:
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=_images(pictures[:8]))
        connection.half_close()
        lines = list(connection.lines())
    assert len(results(lines)) == 8
    assert lines[-1]["done"] is True


def test_a_client_that_hangs_up_ends_its_work(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    connection = daemon.connect()
    connection.send(1, "describe_images", images=_images(pictures))
    connection.line()
    connection.close()
    eventually(lambda: daemon.status()["queue"]["jobs"] == 0, 2, "the end of the job")
    eventually(lambda: daemon.status()["queue"]["running"] == 0, 2, "a free engine")
    assert daemon.status()["framesDone"] < 48


BAD_LINES = [
    (b"{", "parse_error", None),
    (b"[1]", "invalid_request", None),
    (b'{"id":5}', "invalid_request", 5),
    (b'{"id":5,"method":"nope"}', "method_not_found", 5),
    (b'{"id":5,"method":"describe_images","params":{"images":[]}}', "invalid_params", 5),
    (b'{"id":5,"method":"describe_images","params":{"images":"x"}}', "invalid_params", 5),
    (
        b'{"id":5,"method":"describe_images","params":{"images":[{"imagePath":"/a"}],"batchSize":0}}',
        "invalid_params",
        5,
    ),
    (
        b'{"id":5,"method":"describe_images","params":{"images":[{"imagePath":"/a"}],"batchSize":10000}}',
        "invalid_params",
        5,
    ),
    (
        b'{"id":5,"method":"describe_images","params":{"images":[{"imagePath":"/a"}],"model":"x"}}',
        "model_not_loaded",
        5,
    ),
    (b'{"id":5,"method":"hello","params":{"protocol":99}}', "unsupported_protocol", 5),
    (b"\xff", "parse_error", None),
    (b"[" * 20_000, "parse_error", None),
]


@pytest.mark.parametrize("negotiated", [False, True])
def test_bad_lines_are_answered_and_the_connection_lives(daemon: Daemon, negotiated: bool) -> None:
    with daemon.connect() as connection:
        if negotiated:
            connection.ask(0, "hello")
        for data, code, request_id in BAD_LINES:
            connection.send_bytes(data + b"\n")
            (line,) = connection.answer()
            assert (line["code"], line["id"], line["retryable"]) == (code, request_id, False), data[:80]
            assert isinstance(line["error"], str)
            assert len(line["error"]) < 400
        assert connection.ask(6, "ping")[0]["id"] == 6


def test_a_line_over_the_limit_is_answered_and_ends_its_connection_only(daemon: Daemon) -> None:
    with daemon.connect() as other, daemon.connect() as connection:

        def flood() -> None:
            try:
                connection.send_bytes(b"x" * (MAX_FRAME_BYTES + 1024))
            except OSError:
                return  # closed meanwhile

        sender = threading.Thread(target=flood)
        sender.start()
        line = connection.line()
        sender.join(20)
        assert (line["code"], line["id"], line["done"]) == ("frame_too_large", None, True)
        with pytest.raises((EOFError, ConnectionResetError)):
            connection.line()
        assert other.ask(1, "ping")[0]["result"]["state"] == "ready"


def test_a_duplicate_live_id_is_refused(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        connection.ask(0, "hello")
        connection.send(1, "describe_images", images=_images(pictures[:8]))
        connection.send(1, "ping")
        refusal = connection.line()
        assert (refusal["id"], refusal["code"], refusal["data"]) == (None, "duplicate_id", {"refusedId": 1})
        assert len(results(connection.answer())) == 8


def test_bad_pictures_fail_alone(daemon: Daemon, pictures: list[str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes(Path(pictures[0]).read_bytes()[:-30])
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("RGB", (1, 5000), "red").save(tmp_path / "thin.png")
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("I;16", (64, 64), 30000).save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in (0, 120, 240)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    expected = {
        str(tmp_path / "missing.png"): "image_not_found",
        str(tmp_path): "image_not_a_file",
        str(fifo): "image_not_a_file",
        "/dev/zero": "image_not_a_file",
        str(tmp_path / "empty.png"): "image_empty",
        str(tmp_path / "text.png"): "image_invalid",
        str(tmp_path / "cut.png"): "image_invalid",
        "relative.png": "image_path_relative",
        str(tmp_path / "one.png"): None,
        str(tmp_path / "thin.png"): "image_aspect_ratio",
        str(tmp_path / "cmyk.jpg"): None,
        str(tmp_path / "deep.png"): None,
        str(tmp_path / "moves.gif"): None,
        pictures[0]: None,
    }
    for mode in ("parallel", "interleaved"):
        described = results(daemon.ask("describe_images", images=_images(list(expected)), mode=mode))
        assert {result["imagePath"]: result.get("code") for result in described} == expected
        assert all(result["description"] and result["activity"] for result in described)
        assert all(("error" in result) == ("code" in result) for result in described)


def test_hello_is_answered_within_300_ms_of_the_start_while_the_model_loads(start_daemon: StartDaemon) -> None:
    """Promise: bound and talking long before the model is there. Prints its figure."""
    took_s = []
    for _ in range(5):
        daemon = start_daemon(model="fake:load_s=3").wait_bound()
        (line,) = daemon.ask("hello")
        took_s.append(time.monotonic() - daemon.started_at)
        assert line["result"]["state"] == "loading"
        daemon.close()
    print(f"\nhello after start: median {statistics.median(took_s) * 1000:.0f} ms of {len(took_s)}")
    assert min(took_s) < 0.3


def test_requests_wait_while_the_model_loads_and_news_reach_who_said_hello(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    daemon = start_daemon(model="fake:load_s=0.8").wait_bound()
    with daemon.connect() as connection:
        connection.ask(0, "hello")
        connection.send(1, "describe_images", images=_images(pictures[:2]))
        lines = connection.answer()
    events = [line for line in lines if "event" in line]
    assert events[-1]["state"] == "ready"
    assert len(results(lines)) == 2


def test_ping_stays_quick_while_the_engine_is_busy(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as busy, daemon.connect() as connection:
        busy.send(1, "describe_images", images=_images(pictures))
        took_s = []
        for i in range(100):
            start = time.perf_counter()
            connection.ask(i, "ping")
            took_s.append(time.perf_counter() - start)
    p99_ms = sorted(took_s)[98] * 1000
    print(
        f"\nping beside a job: median {statistics.median(took_s) * 1000:.2f} ms, p99 {p99_ms:.1f} ms of {len(took_s)}"
    )
    assert statistics.median(took_s) < 0.05


def test_socat_by_hand(daemon: Daemon, pictures: list[str]) -> None:
    request = json.dumps({"id": 1, "method": "describe_images", "params": {"images": _images(pictures[:5])}})
    done = subprocess.run(
        ["socat", "-t", "10", "-", f"UNIX-CONNECT:{daemon.socket_path}"],
        input=f"{request}\n".encode(), capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results(lines)) == 5
    assert lines[-1]["done"]


def test_a_flood_of_bad_lines_by_a_peer_that_reads_nothing_costs_bounded_memory(daemon: Daemon) -> None:
    before_bytes = daemon.status()["memoryBytes"]
    with daemon.connect() as connection:
        connection.socket.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200_000_000:
                sent += connection.socket.send(b"{\n" * 100_000)
        grown_mb = (daemon.status()["memoryBytes"] - before_bytes) / 1e6
        print(f"\nstopped taking after {sent / 1e6:.1f} MB of bad lines; the daemon grew by {grown_mb:.1f} MB")
        assert grown_mb < 60
        # Once it reads, it is served again.
        connection.socket.settimeout(30)
        assert connection.line()["code"] == "parse_error"
