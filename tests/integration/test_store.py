"""With the result store on, nothing is inferred twice: after a kill of daemon or client, and by another daemon."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually, results
from vlmd_bridge.store.bounds import DEFAULT_BOUNDS
from vlmd_bridge.store.file import StoreFile

SLOW = "fake:step_ms=10,tokens=40,width=4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test's daemons."""
    path = tmp_path / "cache" / "results.db"
    monkeypatch.setenv("VLMD_CACHE_FILE", str(path))
    return path


def images(paths: list[str]) -> list[dict[str, Any]]:
    return [{"imagePath": path} for path in paths]


def inferred(daemon: Daemon) -> int:
    status = daemon.status()
    return int(status["framesDone"] - status["framesCached"] - status["framesDuplicate"])


def test_two_daemons_share_it(start_daemon: StartDaemon, pictures: list[str]) -> None:
    one, other = start_daemon().wait_ready(), start_daemon().wait_ready()
    first = results(one.ask("describe_images", images=images(pictures[:20]), cache=True))
    eventually(lambda: one.ask("cache")[0]["result"]["entries"] == 20)
    second = results(other.ask("describe_images", images=images(pictures), cache=True))
    assert [result["description"] for result in second[:20]] == [result["description"] for result in first]
    assert [result.get("cached", False) for result in second] == [True] * 20 + [False] * 28
    assert (inferred(one), inferred(other)) == (20, 28)
    assert one.ask("cache", action="clear")[0]["result"]["removed"] == 48
    assert other.ask("cache")[0]["result"]["entries"] == 0


def test_another_mode_prompt_time_or_budget_is_another_question(daemon: Daemon, pictures: list[str]) -> None:
    frames = images(pictures[:8])
    variants: list[dict[str, Any]] = [
        {},
        {"mode": "interleaved"},
        {"mode": "interleaved", "batchSize": 2},
        {"prompt": "What is it?"},
        {"maxTokens": 900},
        {"maxTokensPerFrame": 300},
        {"grammar": False},
        {"schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}}},
        {"images": [{**frame, "timestamp": 1} for frame in frames]},
    ]
    for params in variants:
        before = inferred(daemon)
        first = results(daemon.ask("describe_images", **{"images": frames, "cache": True} | params))
        assert inferred(daemon) == before + 8, params
        again = results(daemon.ask("describe_images", **{"images": frames, "cache": True} | params))
        kept = all("raw_response" not in result and "error" not in result for result in first)
        assert inferred(daemon) == before + (8 if kept else 16), params
        for result in again:
            assert result.pop("cached", False) is kept
        assert again == first


def test_a_killed_client_and_a_killed_daemon_cost_only_what_was_running(
    start_daemon: StartDaemon, pictures: list[str], cache: Path
) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as client:
        client.send(1, "describe_images", images=images(pictures), cache=True)
        client.line()
    eventually(lambda: daemon.status()["queue"]["jobs"] == 0)
    stored = daemon.ask("cache")[0]["result"]["entries"]
    assert 4 <= stored < 48
    with daemon.connect() as client:
        client.send(1, "describe_images", images=images(pictures), cache=True)
        while client.line()["progress"]["current"] < stored + 8:
            pass
        os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait()
    kept = sqlite3.connect(cache).execute("SELECT count(*) FROM results").fetchone()[0]
    # The last line may have been read before its results were written, a few milliseconds after they were known.
    assert kept >= stored + 4
    second = start_daemon(model=SLOW).wait_ready()
    described = results(second.ask("describe_images", images=images(pictures), cache=True))
    assert len(described) == 48
    assert inferred(second) == 48 - kept
    print(f"\nafter a killed client and a killed daemon: {48 - kept} of 48 frames were left to infer")


@pytest.mark.parametrize(
    ("wrong", "state"), [("damaged", "ready"), ("locked", "degraded"), ("directory", "degraded"), ("foreign", "off")]
)
def test_a_store_that_cannot_be_used_fails_and_delays_nothing(
    start_daemon: StartDaemon, pictures: list[str], cache: Path, wrong: str, state: str
) -> None:
    cache.parent.mkdir()
    locker = None
    if wrong == "directory":
        cache.mkdir()
    elif wrong == "foreign":
        cache.write_bytes(b"my notes\n" * 5000)
    else:
        StoreFile(cache, DEFAULT_BOUNDS).close()
    if wrong == "damaged":
        cache.write_bytes(cache.read_bytes()[:100] + b"\xff" * 50_000)
    elif wrong == "locked":
        locker = sqlite3.connect(cache, isolation_level=None)
        locker.execute("PRAGMA locking_mode=EXCLUSIVE")
        locker.execute("BEGIN EXCLUSIVE")
    daemon = start_daemon().wait_ready()
    started_s = time.monotonic()
    described = results(daemon.ask("describe_images", images=images(pictures), cache=True))
    spent_s = time.monotonic() - started_s
    assert all("error" not in result for result in described)
    assert spent_s < 5
    eventually(lambda: "warning" in daemon.status()["cache"])
    info = daemon.ask("cache")[0]["result"]
    assert str(cache) in info["warning"]
    assert info["state"] == state
    if locker is not None:
        locker.close()


def test_a_plain_connection_sees_nothing_new(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--cache").wait_ready()
    twice = [results(daemon.ask("describe_images", images=images(pictures[:1] * 3))) for _ in range(2)]
    assert twice[0] == twice[1]
    assert inferred(daemon) == 1
    for result in twice[1]:
        assert set(result) == {"index", "timestamp", "imagePath", "description", "activity", "apps", "topics"}


def test_asking_again_costs_little_more_than_decoding(daemon: Daemon, pictures: list[str]) -> None:
    frames = images(pictures * 2)

    def per_frame_ms(**params: Any) -> float:
        spent = []
        for _ in range(5):
            started_s = time.monotonic()
            daemon.ask("describe_images", images=images(pictures), dedupe=False, **params)
            spent.append(1000 * (time.monotonic() - started_s) / 48)
        return sorted(spent)[2]

    daemon.ask("describe_images", images=frames, cache=True)
    print(f"\nasking again: {per_frame_ms(cache=True):.2f} ms a frame of 64x64, store and decoding")


@pytest.mark.parametrize("point", ["full@write", "full@read", "raise@write", "hang@write", "raise@read"])
def test_a_store_that_fails_fails_no_job(start_daemon: StartDaemon, pictures: list[str], point: str) -> None:
    daemon = start_daemon(faults=f"store.{point}:1x*").wait_ready()
    answer = results(daemon.ask("describe_images", images=images(pictures[:8]), cache=True))
    assert not [result for result in answer if "error" in result]
    assert inferred(daemon) == 8
    if point.startswith("full"):
        eventually(lambda: daemon.status()["cache"]["state"] == "degraded")
        assert "No space left" in daemon.status()["cache"]["warning"]
