"""The clients of the mixed load: batch and interactive ones that compare, and three that misbehave."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import vlmd
from tests.soak.known_answers import ERROR, KnownAnswers
from tests.support.daemon import Connection
from tests.support.hostile import HostileLines
from vlmd_protocol.connection import Refusal, ServerConnection

# What a client may be told when the worker under its request ends, or the queue is full: to be asked again.
_TO_BE_REPEATED = frozenset({"worker_crashed", "engine_unavailable", "busy"})

# An image process that hangs costs the picture that it hangs on, by design: nobody can tell which of the two it is.
_COSTS_OF_A_HANG = frozenset({f"{ERROR}image_timeout"})

# Longer than the daemon waits for a reader that takes nothing (30 s), with room for a machine that is busy.
_STALL_LIMIT_S = 75.0

# A worker that hangs is noticed and replaced by then.
_PATIENCE_S = 180.0

_GARBAGE_LINES = 300


@dataclass
class Tally:
    """What the clients saw. Shared by their threads."""

    answers: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # A client that does not come through has no place to raise.
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, name: str, came: object, expected: object, took_s: float) -> None:
        """Count an answer, and keep each part of it that is not what was said alone."""
        with self._lock:
            self.answers[name] += 1
            self.slowest_s = max(self.slowest_s, took_s)
            pairs = zip(came, expected, strict=True) if isinstance(came, list) and isinstance(expected, list) else None
            for said, known in pairs if pairs is not None else [(came, expected)]:
                if isinstance(said, tuple) and said[0] in _COSTS_OF_A_HANG:
                    self.told[said[0].removeprefix(ERROR)] += 1
                elif said != known:
                    self.wrong.append(f"{name}: {said} instead of {known}"[:600])

    def failed(self, name: str, error: Exception) -> None:
        """Count a typed error that tells to ask again; keep any other."""
        code = getattr(error, "code", type(error).__name__)
        with self._lock:
            self.told[code] += 1
            if code not in _TO_BE_REPEATED:
                self.broken.append(f"{name}: {type(error).__name__} {error}"[:600])

    def misbehaved(self, name: str) -> None:
        """Count what a misbehaving client did."""
        with self._lock:
            self.answers[name] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What every client of the load knows."""

    socket_path: Path
    known: KnownAnswers
    tally: Tally
    stopping: threading.Event
    seed: int

    def start(self, *, batch: int = 4, interactive: int = 4) -> list[threading.Thread]:
        """Start every client on a thread of its own."""
        jobs: list[tuple[str, Callable[[random.Random], None]]] = [
            *((f"batch {number}", self._batch) for number in range(batch)),
            *((f"interactive {number}", self._interactive) for number in range(interactive)),
            ("disconnects", self._disconnect),
            ("stalls", self._stall),
            ("garbage", self._garbage),
        ]
        threads = []
        for number, (name, work) in enumerate(jobs):
            thread = threading.Thread(target=self._keep_going, args=(name, work, self.seed + number), name=name)
            thread.start()
            threads.append(thread)
        return threads

    def _keep_going(self, name: str, work: Callable[[random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        while not self.stopping.is_set():
            try:
                work(rng)
            except (vlmd.VlmdError, OSError, EOFError, AssertionError) as error:
                self.tally.failed(name, error)
                self.stopping.wait(0.2)

    def _client(self) -> vlmd.Client:
        return vlmd.Client(socket=self.socket_path, start=False, log=lambda _: None)

    # --- those that compare -----------------------------------------------------------------------------------

    def _batch(self, rng: random.Random) -> None:
        with self._client() as client:
            for _ in range(rng.randint(1, 6)):
                self._ask(client, self.known.batch, rng)

    def _interactive(self, rng: random.Random) -> None:
        with self._client() as client:
            for _ in range(rng.randint(5, 30)):
                self._ask(client, self.known.interactive, rng)
                if self.stopping.wait(rng.expovariate(1.0)):
                    return

    def _ask(
        self,
        client: vlmd.Client,
        ask: Callable[[vlmd.Client, random.Random], tuple[str, object, object]],
        rng: random.Random,
    ) -> None:
        if self.stopping.is_set():
            return
        began_s = time.monotonic()
        name, came, expected = ask(client, rng)
        self.tally.answered(name, came, expected, time.monotonic() - began_s)

    # --- those that misbehave ---------------------------------------------------------------------------------

    def _disconnect(self, rng: random.Random) -> None:
        """Ask for many frames, take some lines and hang up in the middle."""
        with Connection(self.socket_path, timeout_s=_PATIENCE_S) as connection:
            if rng.random() < 0.5:
                connection.ask("h", "hello")
            images = [{"imagePath": path} for path in rng.choices(self.known.paths, k=24)]
            connection.send(1, "describe_images", images=images, batchSize=2)
            for _ in range(rng.randint(0, 3)):
                connection.line()
        self.tally.misbehaved("disconnects")
        self.stopping.wait(rng.uniform(0.5, 5.0))

    def _stall(self, rng: random.Random) -> None:
        """Ask again and again and read nothing, until the daemon has had enough."""
        began_s = time.monotonic()
        with Connection(self.socket_path, timeout_s=1.0) as connection:
            connection.ask("h", "hello")
            number = 0
            while not self.stopping.is_set():
                number += 1
                try:
                    connection.send(number, "status")
                except TimeoutError:
                    assert time.monotonic() - began_s < _STALL_LIMIT_S, "a reader that stalls is not closed"
                except OSError:
                    self.tally.misbehaved("stalls")
                    break
        self.stopping.wait(rng.uniform(5.0, 20.0))

    def _garbage(self, rng: random.Random) -> None:
        """Send what is no request, and read what is said to it."""
        lines = HostileLines(rng.getrandbits(32))
        judge = ServerConnection()
        with Connection(self.socket_path, timeout_s=_PATIENCE_S) as connection:
            sent = 0
            for _ in range(_GARBAGE_LINES):
                data = lines.line()
                verdicts = list(judge.receive(data))
                # A whole request among them would be work for the engine.
                if all(isinstance(verdict, Refusal) for verdict in verdicts):
                    connection.send_bytes(data)
                    sent += len(verdicts)
                else:
                    judge = ServerConnection()
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
            answers = list(connection.lines())
        assert len(answers) == sent, f"{len(answers)} answers to {sent} lines of garbage"
        assert all(answer.get("error") and answer.get("done") for answer in answers), "garbage was taken for a request"
        self.tally.misbehaved("garbage")
        self.stopping.wait(rng.uniform(0.5, 3.0))
