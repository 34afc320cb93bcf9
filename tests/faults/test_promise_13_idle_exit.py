"""Promise 13: a client that connects while the daemon is about to leave for idleness is answered, or finds nobody and
starts another: no connection is taken and then dropped.
"""

from __future__ import annotations

import multiprocessing.connection
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vlmd
from tests.faults.electing import CONTEXT, LIMIT_S, ask, compete
from tests.faults.figures import figure, rounds
from vlmd import _connector

ROUNDS = rounds(push=100, long=500)
WHOLE_ROUNDS = rounds(push=12, long=100)

# The daemon leaves so long after its last connection; a connect comes within `_AROUND_S` of that moment.
_IDLE_S = 0.05
_AROUND_S = 0.004

# Whole daemons look each quarter of a second whether they are idle.
_WHOLE_IDLE_S = 0.3

# To start a process is to look at the ends of all the others, and an end can be read once: two threads that look at the
# same time make a status of nothing.
_PROCESSES = threading.Lock()

_SEED = 13

# Most of a round is waiting.
_RACERS = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vlmd-i-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Racer:
    """Connects at the moment of the idle exit, round after round."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.found: Counter[str] = Counter()
        self._folder = folder
        self._rng = random.Random(seed)
        # The moment is found by halves: earlier after an early exit, later after a late one.
        self._centre_s = _IDLE_S

    def race_all(self, numbers: range) -> None:
        """Race round after round."""
        for number in numbers:
            self.race(number)

    def race(self, number: int) -> None:
        """Start one, connect when it is about to leave, and start another where it has left."""
        path = self._folder / f"{number}.sock"
        first = _Elected(path, idle_s=_IDLE_S)
        _sleep_until(time.perf_counter() + self._centre_s + self._rng.uniform(-_AROUND_S, _AROUND_S))
        answered = ask(path)  # raises where it was taken and dropped
        if answered is None:
            self._centre_s -= 0.001
            self.found["respawned"] += 1
            successor = _Elected(path)
            assert ask(path) == successor.pid
            successor.kill()
        else:
            self._centre_s += 0.001
            self.found["answered"] += 1
            assert answered == first.pid
        assert first.exit_status() == 0


class _Elected:
    """A process that listens at `path`."""

    def __init__(self, path: Path, idle_s: float = 0.0) -> None:
        report, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=compete, args=(path, None, theirs, 0, idle_s))
        with _PROCESSES:
            self._process.start()
        theirs.close()
        with report:
            assert report.poll(LIMIT_S)
            outcome, self.pid = report.recv()
        assert outcome == "ready"

    def kill(self) -> None:
        with _PROCESSES:
            self._process.kill()
        self.exit_status()

    def exit_status(self) -> int | None:
        multiprocessing.connection.wait([self._process.sentinel], LIMIT_S)
        with _PROCESSES:
            return self._process.exitcode


def test_rounds(folder: Path) -> None:
    """The listening part alone, whose idle time is short enough to hit the moment often."""
    racers = [Racer(folder, _SEED + number) for number in range(_RACERS)]
    with ThreadPoolExecutor(_RACERS) as pool:
        lanes = [pool.submit(racer.race_all, range(first, ROUNDS, _RACERS)) for first, racer in enumerate(racers)]
        for lane in lanes:
            lane.result()
    found = sum((racer.found for racer in racers), Counter[str]())
    figure("13", rounds=ROUNDS, dropped=0, **found)
    assert found["answered"] > 0
    assert found["respawned"] > 0


def test_whole_daemons(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client and the daemon as they are: every call is answered, by the daemon that is there or by a new one."""
    rng, pids = random.Random(_SEED), set[int]()
    monkeypatch.setattr(_connector, "SHARED_IDLE_TIMEOUT_S", _WHOLE_IDLE_S)
    path = folder / "whole.sock"
    for _ in range(WHOLE_ROUNDS):
        with vlmd.Client("fake", socket=path, python=sys.executable, log=lambda _: None) as client:
            pids.add(client.hello().pid)
        time.sleep(_WHOLE_IDLE_S + rng.uniform(-0.05, 0.35))
    figure("13", whole_rounds=WHOLE_ROUNDS, daemons=len(pids))


def _sleep_until(when_s: float) -> None:
    # The last stretch by looking at the clock: a sleep may be late by more than the moment is long.
    time.sleep(max(0.0, when_s - time.perf_counter() - 0.002))
    while time.perf_counter() < when_s:
        pass
