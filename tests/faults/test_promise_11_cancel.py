"""Promise 11: a request that is cancelled at any moment ends with exactly one terminal line, and no line follows it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.faults.figures import figure, rounds
from tests.support.daemon import Connection, Daemon, eventually

CANCELS = rounds(push=1_000, long=20_000)
CONNECTIONS = 4

# Of one connection at a time: enough that the engine is full, and that some wait.
_UNDER_WAY = 8

# The last of a portion is cancelled after one of these: about as long as the answers take, by the machine.
_MODEL = "fake:step_ms=0.5,tokens=6,width=8"
_LATEST_S = (0.01, 0.05, 0.15)


class Canceller:
    """One connection that asks, cancels what it asked for, and keeps the lines of each id."""

    def __init__(self, daemon: Daemon, pictures: list[str], seed: int) -> None:
        self.ended: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._pictures = pictures
        self._lines: dict[object, list[dict[str, Any]]] = {}
        self._connection: Connection = daemon.connect()
        self._connection.ask("hello", "hello")

    def run(self, count: int) -> None:
        """Ask and cancel `count` times."""
        with self._connection:
            for start in range(0, count, _UNDER_WAY):
                self._portion(range(start, min(start + _UNDER_WAY, count)))
            # Whatever were to come after a terminal line has come before this one.
            self._connection.send("last", "ping")
            self._read_until({"last"})
        for request, lines in self._lines.items():
            terminal = [number for number, line in enumerate(lines) if line.get("done")]
            assert terminal == [len(lines) - 1], f"{request}: {lines}"

    def _portion(self, numbers: range) -> None:
        awaited: set[object] = set()
        sent = [f"r{number}" for number in numbers]
        for request in sent:
            self._ask(request)
        awaited.update(sent)
        self._rng.shuffle(sent)
        latest_s = self._rng.choice(_LATEST_S)
        for request in sent:
            # Nothing to wait for: the moment is the point.
            time.sleep(self._rng.uniform(0, latest_s / len(sent)))
            for attempt in range(self._rng.choice((1, 1, 1, 2))):
                cancel = f"c{attempt} {request}"
                self._connection.send(cancel, "cancel", target=request)
                awaited.add(cancel)
        self._read_until(awaited)
        for request in sent:
            last = self._lines[request][-1]
            self.ended[last.get("code", "answered")] += 1
            assert last.get("code", "cancelled") == "cancelled", last

    def _ask(self, request: str) -> None:
        if self._rng.random() < 0.3:
            stream = self._rng.random() < 0.5
            self._connection.send(request, "generate", prompt=f"Say {request}.", stream=stream)
            return
        images = [{"imagePath": path} for path in self._rng.sample(self._pictures, self._rng.randint(1, 8))]
        self._connection.send(request, "describe_images", images=images, batchSize=self._rng.randint(1, 4))

    def _read_until(self, awaited: set[object]) -> None:
        left = set(awaited)
        while left:
            line = self._connection.line()
            self._lines.setdefault(line["id"], []).append(line)
            if line.get("done"):
                left.discard(line["id"])


def test_cancel_at_random_times(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=_MODEL).wait_ready()
    ended = _cancel(daemon, pictures, CANCELS)
    figure("11", cancels=CANCELS, **{name: ended[name] for name in sorted(ended)}, second_terminal_lines=0)
    assert min(ended["cancelled"], ended["answered"]) > CANCELS // 20


@pytest.mark.model
def test_on_the_demo_model(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model="demo").wait_ready()
    ended = _cancel(daemon, pictures, 48)
    figure("11", demo_cancels=48, demo_cancelled=ended["cancelled"])
    assert ended["cancelled"] > 0


def _cancel(daemon: Daemon, pictures: list[str], count: int) -> Counter[str]:
    cancellers = [Canceller(daemon, pictures, seed) for seed in range(CONNECTIONS)]
    problems: list[AssertionError] = []

    def run(canceller: Canceller) -> None:
        try:
            canceller.run(count // CONNECTIONS)
        except AssertionError as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(canceller,)) for canceller in cancellers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    eventually(lambda: daemon.status()["queue"] == {**daemon.status()["queue"], **_EMPTY}, what="an empty queue")
    return sum((canceller.ended for canceller in cancellers), Counter[str]())


_EMPTY = {"jobs": 0, "queued": 0, "decoding": 0, "ready": 0, "running": 0}
