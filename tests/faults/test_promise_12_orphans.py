"""Promise 12: the parent of an owned daemon is killed, in whatever state: after two seconds no process is left.

Nor is a socket or a lock. The same for the workers of a daemon that is killed itself.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.figures import figure, rounds
from tests.support.daemon import Connection, eventually
from tests.support.owned import OwnedDaemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")

LIMIT_S = 2.0

# Rounds at once: most of a round is spent waiting for processes to start.
_AT_ONCE = 3

# Each look reads the environment of every process: not so often that it keeps them from ending.
_LOOK_EVERY_S = 0.05

# A look that comes later than this shows that the machine had no time for us either: that is not the daemon's.
_LATE_S = 0.15

_SLOW = "fake:step_ms=5,tokens=2000,width=4"


@dataclass(frozen=True, kw_only=True)
class State:
    """A state to kill in: the daemon's model and faults, and how it gets there; `reach` may hold a connection."""

    reach: Callable[[OwnedDaemon, list[str]], Connection | None]
    model: str = "fake"
    faults: str = ""


def _spawned(daemon: OwnedDaemon, pictures: list[str]) -> None:
    pass


def _bound(daemon: OwnedDaemon, pictures: list[str]) -> None:
    daemon.wait_for("bound")


def _loading(daemon: OwnedDaemon, pictures: list[str]) -> None:
    daemon.wait_for("loading")


def _not_loading(daemon: OwnedDaemon, pictures: list[str]) -> None:
    daemon.wait_for("bound")
    eventually(lambda: "strikes" in daemon.log, what="the fault")


def _idle(daemon: OwnedDaemon, pictures: list[str]) -> None:
    daemon.wait_for("ready")


def _running(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    daemon.wait_for("ready")
    connection = daemon.connect()
    connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
    eventually(lambda: daemon.status()["queue"]["running"], what="running frames")
    return connection


def _decoding(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    daemon.wait_for("ready")
    connection = daemon.connect()
    connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
    eventually(lambda: daemon.status()["queue"]["decoding"], what="frames being decoded")
    return connection


def _draining(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    connection = _running(daemon, pictures)
    watching = daemon.connect()
    os.kill(daemon.pid, signal.SIGTERM)
    eventually(lambda: watching.ask(1, "ping")[0]["result"]["state"] == "draining", what="the drain")
    watching.close()
    return connection


def _restarting(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    connection = _running_once(daemon, pictures)
    eventually(lambda: daemon.status()["models"][0]["state"] == "restarting", what="a restart")
    return connection


def _running_once(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    daemon.wait_for("ready")
    connection = daemon.connect()
    connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
    return connection


def _stopped_worker(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    connection = _running(daemon, pictures)
    os.kill(daemon.status()["models"][0]["pid"], signal.SIGSTOP)
    return connection


def _stuck_daemon(daemon: OwnedDaemon, pictures: list[str]) -> Connection:
    daemon.wait_for("ready")
    connection = daemon.connect()
    connection.send(1, "ping")
    eventually(lambda: "strikes" in daemon.stderr, what="the fault")
    return connection


STATES = {
    "spawned": State(reach=_spawned),
    "starting": State(reach=_spawned, faults="daemon.slow=1500@start"),
    "bound": State(reach=_bound),
    "loading": State(reach=_loading, model="fake:load_s=60"),
    "wedged in loading": State(reach=_not_loading, model="fake", faults="worker.wedge@start"),
    "idle": State(reach=_idle),
    "running": State(reach=_running, model=_SLOW),
    "worker hung": State(reach=_running, model=_SLOW, faults="worker.hang@step:3"),
    "worker wedged": State(reach=_running, model=_SLOW, faults="worker.wedge@step:3"),
    "worker stopped": State(reach=_stopped_worker, model=_SLOW),
    "decoding hung": State(reach=_decoding, faults="image.wedge@picture:1"),
    "draining": State(reach=_draining, model=_SLOW),
    "restarting": State(reach=_restarting, faults="worker.segv@step:1x*"),
    "daemon hung": State(reach=_stuck_daemon, faults="daemon.hang@request"),
}


@contextmanager
def owned(name: str, pictures: list[str], folder: Path) -> Iterator[OwnedDaemon]:
    state = STATES[name]
    daemon = OwnedDaemon(model=state.model, faults=state.faults, folder=folder)
    connection = None
    try:
        connection = state.reach(daemon, pictures)
        yield daemon
    finally:
        if connection is not None:
            connection.close()
        daemon.close()


def _left(name: str, pictures: list[str], folder: Path, *, owner: bool) -> float:
    """Kill in that state; return after how many seconds nothing was left."""
    with owned(name, pictures, folder) as daemon:
        survivors = set() if owner else {daemon.owner_pid}
        looked_s = began_s = daemon.kill(owner=owner)
        starved_s = 0.0
        while left := set(daemon.processes()) - survivors:
            if time.monotonic() - began_s > 5 * LIMIT_S:
                raise AssertionError(f"killed while {name}: {left} still run")
            time.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            starved_s += max(0.0, now_s - looked_s - _LATE_S)
            looked_s = now_s
        took_s = time.monotonic() - began_s - starved_s
        if owner:
            assert not daemon.files(), f"killed while {name}: {daemon.files()} are left"
        return took_s


def _measure(count: int, names: list[str], pictures: list[str], folder: Path, *, owner: bool) -> dict[str, list[float]]:
    took_s: dict[str, list[float]] = {name: [] for name in names}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        turns = [names[at % len(names)] for at in range(count)]
        for name, seconds in zip(
            turns, pool.map(lambda name: _left(name, pictures, folder, owner=owner), turns), strict=True
        ):
            took_s[name].append(seconds)
    return took_s


def test_nothing_is_left_of_a_daemon_whose_parent_was_killed(pictures: list[str], tmp_path: Path) -> None:
    count = rounds(push=50, long=200)
    took_s = _measure(count, list(STATES), pictures[:12], tmp_path, owner=True)
    every = [seconds for each in took_s.values() for seconds in each]
    worst = max(took_s, key=lambda name: max(took_s[name]))
    figure(
        "12",
        rounds=count,
        states=len(STATES),
        median_s=round(statistics.median(every), 2),
        most_s=round(max(every), 2),
        worst=worst,
        left_behind=0,
    )
    assert max(every) < LIMIT_S, {name: [round(s, 2) for s in each] for name, each in took_s.items()}


def test_nothing_is_left_of_a_daemon_that_was_killed(pictures: list[str], tmp_path: Path) -> None:
    names = [name for name in STATES if name not in {"daemon hung", "starting"}]
    count = rounds(push=len(names), long=4 * len(names))
    took_s = _measure(count, names, pictures[:12], tmp_path, owner=False)
    every = [seconds for each in took_s.values() for seconds in each]
    figure("12, daemon killed", rounds=count, most_s=round(max(every), 2))
    assert max(every) < LIMIT_S, {name: [round(s, 2) for s in each] for name, each in took_s.items()}
