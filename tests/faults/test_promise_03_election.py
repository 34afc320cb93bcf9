"""Promise 3: whoever starts together, from nothing, from a stale socket or beside an owner that dies: exactly one
listens, and every client is answered by it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

import vlmd
from tests.faults.electing import CONTEXT, LIMIT_S, ask, compete, listeners_at
from tests.faults.figures import LONG, figure, rounds
from tests.support.daemon import eventually

Before: TypeAlias = Literal["none", "stale", "killed owner", "stopping owner"]

ROUNDS = rounds(push=200, long=20)
STARTERS = rounds(push=2, long=50)

# With whole daemons and real clients, a few: each costs half a second of work and more.
WHOLE_ROUNDS = rounds(push=10, long=30)

_SEED = 3


class Starters:
    """Processes that compete for one path, and what each reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: list[tuple[ForkServerProcess, Connection]] = []

    def owner(self) -> int:
        """Start one alone; its process id."""
        (outcome,) = self._start(1)
        assert outcome.recv()[0] == "ready"
        return int(self._started[-1][0].pid or 0)

    def race(self, count: int, dying: int, number: signal.Signals | None) -> list[tuple[str, int]]:
        """Start `count` at the same moment, as `number` ends `dying`; what each reported."""
        barrier = CONTEXT.Barrier(count + 1)
        reports = self._start(count, barrier, dying)
        barrier.wait(LIMIT_S)
        if number is not None:
            os.kill(dying, number)
        for report in reports:
            assert report.poll(LIMIT_S), "a starter neither listens nor finds the one who does"
        return [report.recv() for report in reports]

    def _start(self, count: int, barrier: object = None, dying: int = 0) -> list[Connection]:
        reports = []
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=compete, args=(self.path, barrier, theirs, dying))
            process.start()
            theirs.close()
            self._started.append((process, ours))
            reports.append(ours)
        return reports

    def close(self) -> None:
        """End them."""
        for process, report in self._started:
            process.kill()
            process.join(LIMIT_S)
            report.close()
            process.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vlmd-e-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def one_round(path: Path, before: Before, starters: int) -> None:
    contest = Starters(path)
    dying, number = 0, None
    try:
        if before == "stale":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
                dead.listen()
        elif before != "none":
            dying = contest.owner()
            number = signal.SIGKILL if before == "killed owner" else signal.SIGTERM
        outcomes = contest.race(starters, dying, number)
        winners = [pid for outcome, pid in outcomes if outcome == "ready"]
        assert len(winners) == 1, (before, outcomes)
        assert {pid for _, pid in outcomes} == set(winners), (before, outcomes)
        # The dying one may take a moment to be gone; a listener too many would stay.
        eventually(lambda: listeners_at(path) == 1, LIMIT_S, f"one listener ({before})")
        assert [ask(path) for _ in range(starters)] == winners * starters
    finally:
        contest.close()


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="counts listeners where Linux shows them")
def test_rounds(folder: Path) -> None:
    kinds: tuple[Before, ...] = ("none", "stale", "killed owner", "stopping owner")
    began_s = time.monotonic()
    for number in range(ROUNDS):
        one_round(folder / f"{number}.sock", kinds[number % len(kinds)], STARTERS)
    figure(
        "3", rounds=ROUNDS, starters=STARTERS, two_listeners=0, unanswered=0,
        took_s=round(time.monotonic() - began_s, 1),
    )  # fmt: skip


def test_whole_daemons(folder: Path) -> None:
    """Clients that start daemons together all end at the same one, also where the last one was just killed."""
    rng = random.Random(_SEED)
    clients = 8 if LONG else 3
    path = folder / "whole.sock"
    pids: set[int] = set()
    for number in range(WHOLE_ROUNDS):
        before, pids, problems = pids, set(), list[str]()

        def start(pids: set[int] = pids, problems: list[str] = problems) -> None:
            try:
                with vlmd.Client("fake", socket=path, python=sys.executable, log=lambda _: None) as client:
                    pids.add(client.hello().pid)
            except vlmd.VlmdError as error:
                problems.append(repr(error))

        threads = [threading.Thread(target=start) for _ in range(clients)]
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.start()
            # Not all at the same moment: also while the first is about to bind.
            time.sleep(rng.uniform(0, 0.05))
        for thread in threads:
            thread.join(60)
        assert (len(pids), problems) == (1, []), f"round {number}: {pids} {problems}"
        assert not pids & before
    with vlmd.Client(socket=path, start=False, log=lambda _: None) as client:
        client.shutdown()
    eventually(lambda: not path.exists(), 10, "the end of the last daemon")
    figure("3", whole_rounds=WHOLE_ROUNDS, clients=clients)
