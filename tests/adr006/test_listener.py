"""``vlmd serve --adr-socket``: a second listener of the same daemon, for ADR-006's adapter."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Connection, Daemon, eventually, results


def _two(start_daemon: StartDaemon, *options: str, **arguments: Any) -> tuple[Daemon, Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
    path = folder / "adr.sock"
    daemon = start_daemon("--adr-socket", str(path), *options, folder=folder, **arguments)
    return daemon, path


def _images(pictures: list[str], count: int) -> list[dict[str, Any]]:
    return [{"imagePath": path, "timestamp": float(i)} for i, path in enumerate(pictures[:count])]


def test_the_form_is_a_property_of_the_listener(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon, path = _two(start_daemon)
    daemon.wait_ready()
    with Connection(path) as connection:
        adr = connection.ask(1, "describe_images", images=_images(pictures, 6))
    plain = daemon.ask("describe_images", images=_images(pictures, 6))
    assert adr[-1] == {"id": 1, "done": True}
    assert adr[-2] == {key: value for key, value in plain[-1].items() if key != "done"}
    assert (adr[-2]["partial"], adr[-2]["progress"]) == (False, {"current": 6, "total": 6})
    assert adr[:-2] == plain[:-1]
    assert results(adr) == results(plain)
    # One daemon: the other socket's work is in its counters.
    assert daemon.status()["framesDone"] == 12
    assert daemon.stop() == 0
    assert not path.exists()


def test_requests_in_order_on_one_connection(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon, path = _two(start_daemon)
    daemon.wait_ready()
    with Connection(path) as connection:
        for request_id in (1, 2):
            connection.send(request_id, "describe_images", images=_images(pictures, 5))
        connection.send(3, "ping")
        ids = [connection.line()["id"] for _ in range(7)]
    assert ids == [1, 1, 1, 2, 2, 2, 3]
    daemon.stop()


def test_one_path_for_both_speaks_the_adrs_form(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon()
    daemon.wait_ready()
    path = daemon.folder / "both.sock"
    both = start_daemon("--adr-socket", str(path), socket_path=path).wait_ready()
    assert both.ask("describe_images", images=_images(pictures, 1))[-1] == {"id": 1, "done": True}


def test_the_configurations_sizes_are_for_requests_without_any(
    start_daemon: StartDaemon, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCRIBANO_VLM_BATCH_SIZE", "2")
    daemon, path = _two(start_daemon)
    daemon.wait_ready()
    with Connection(path) as connection:
        assert len(connection.ask(1, "describe_images", images=_images(pictures, 6))) == 4
        assert len(connection.ask(2, "describe_images", images=_images(pictures, 6), batchSize=3)) == 3
    assert len(daemon.ask("describe_images", images=_images(pictures, 6))) == 2
    daemon.stop()


def test_a_held_adr_path_is_fatal_and_leaves_nothing(start_daemon: StartDaemon) -> None:
    holder = start_daemon().wait_ready()
    second = start_daemon("--adr-socket", str(holder.socket_path))
    line = second.wait_for("fatal", "ready", "running")
    assert line["status"] == "fatal"
    assert str(holder.process.pid) in line["error"]
    assert second.process.wait(5) == 2
    assert not second.socket_path.exists()
    assert holder.ask("ping")


def test_idle_exit_counts_both_sockets(start_daemon: StartDaemon) -> None:
    daemon, path = _two(start_daemon, "--idle-timeout", "1")
    daemon.wait_bound()  # a loaded machine may not be ready within a second
    with Connection(path) as connection:
        time.sleep(1.5)
        assert connection.ask(1, "ping")
        assert daemon.process.poll() is None
    assert daemon.process.wait(5) == 0
    assert not path.exists()
    assert not daemon.socket_path.exists()


def test_a_taken_adr_path_is_bound_again(start_daemon: StartDaemon) -> None:
    daemon, path = _two(start_daemon)
    daemon.wait_ready()
    path.unlink()
    eventually(path.exists, 1.2, "the path")
    with Connection(path) as connection:
        assert connection.ask(1, "ping")
    daemon.stop()
