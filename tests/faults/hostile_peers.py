"""Peers of promise 1: hostile ones, many on one thread, and one that behaves and must not notice them."""

from __future__ import annotations

import random
import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tests.support.daemon import Connection
from tests.support.hostile import HostileLines, id_of, is_doubtful, lines_of

# Lines are made in portions of so many, so that making them does not hold up the connections.
_PORTION = 50

# What one write carries at most: its bounds fall anywhere in a line.
_MAX_PIECE_BYTES = 32 * 1024

# Nothing takes so long, on any machine: the daemon owes an answer and does not give it.
_SILENCE_S = 60.0

# How often the bystander asks.
_PING_EVERY_S = 0.005


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What every line of a daemon has, as far as this test looks at it."""

    id: int | str | None = None
    done: bool = False
    error: str | None = None
    event: str | None = None
    data: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class HostilePeer:
    """One connection that sends hostile lines and half-closes; it counts what was to be answered and what was."""

    def __init__(self, path: Path, seed: int, lines: int) -> None:
        self.sent = 0
        self.over = False
        # Ids of different connections are far apart: one that strays is seen.
        self._supply = HostileLines(seed, first_id=seed << 20)
        self._left = lines
        self._owed: Counter[int | str | None] = Counter()
        self._doubtful: Counter[int | str | None] = Counter()
        self._got: Counter[int | str | None] = Counter()
        self._unsent = memoryview(b"")
        self._partial = b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)

    @property
    def writing(self) -> bool:
        """Whether there is more to send."""
        return self._left > 0 or bool(self._unsent)

    def write(self, rng: random.Random) -> None:
        """Send a piece."""
        if not self._unsent:
            self._unsent = memoryview(self._portion())
        try:
            count = self.socket.send(self._unsent[: rng.randint(1, _MAX_PIECE_BYTES)])
        except BlockingIOError:
            return
        self._unsent = self._unsent[count:]
        if not self.writing:
            self.socket.shutdown(socket.SHUT_WR)

    def read(self) -> None:
        """Take what there is."""
        data = self.socket.recv(1 << 18)
        if not data:
            assert not self._partial, f"the daemon closed in the middle of a line: {self._partial[:80]!r}"
            self.over = True
            self.socket.close()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            answer = _decode(line)
            if answer.done:
                refused = (answer.data or {}).get("refusedId")
                self._got[answer.id if refused is None else refused] += 1
            else:
                assert answer.event is None or answer.id is None, line[:200]

    def check(self) -> None:
        """Assert that each line had its one terminal line, with its own id."""
        assert not self.writing, "the daemon closed before it had read everything"
        assert not self._owed - self._got, f"without an answer: {self._owed - self._got}"
        # Where the line may or may not be JSON, the answer has its id or none.
        beyond = self._got - self._owed
        nameless = beyond.pop(None, 0)
        assert not beyond - self._doubtful, f"with a wrong id, or answered twice: {beyond - self._doubtful}"
        assert nameless == self._doubtful.total() - beyond.total()

    def _portion(self) -> bytes:
        data = b"".join(self._supply.line() for _ in range(min(_PORTION, self._left)))
        self._left -= min(_PORTION, self._left)
        for line in lines_of(data):
            (self._doubtful if is_doubtful(line) else self._owed)[id_of(line)] += 1
            self.sent += 1
        return data


def serve_all(peers: list[HostilePeer], rng: random.Random) -> None:
    """Let all of them send and read, in turns, until the daemon has answered and closed each."""
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
        left = len(peers)
        while left:
            ready = selector.select(_SILENCE_S)
            assert ready, "the daemon owes answers and gives none"
            rng.shuffle(ready)
            for key, events in ready:
                at_hand: HostilePeer = key.data
                if events & selectors.EVENT_WRITE:
                    at_hand.write(rng)
                    if not at_hand.writing:
                        selector.modify(at_hand.socket, selectors.EVENT_READ, at_hand)
                if events & selectors.EVENT_READ:
                    fileobj = key.fileobj
                    at_hand.read()
                    if at_hand.over:
                        selector.unregister(fileobj)
                        left -= 1


class Bystander:
    """Asks `ping` on a connection of its own, on a thread, while the block runs. A context manager."""

    def __init__(self, path: Path) -> None:
        self.took_s: list[float] = []
        self._connection = Connection(path)
        self._connection.ask("hello", "hello")
        self._stopping = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the time that a `ping` took."""
        return statistics.quantiles(self.took_s, n=100)[-1] if len(self.took_s) > 1 else self.took_s[0]

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_SILENCE_S)
        self._connection.close()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        number = 0
        try:
            while not self._stopping.wait(_PING_EVERY_S) or number == 0:
                number += 1
                began_s = time.perf_counter()
                (line,) = self._connection.ask(number, "ping")
                self.took_s.append(time.perf_counter() - began_s)
                assert line["id"] == number
                assert line["result"]["state"] == "ready"
        except (AssertionError, OSError, EOFError, ValueError, KeyError) as problem:
            self._problem = problem
