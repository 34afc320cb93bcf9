"""Faults that strike a running daemon's processes, by signal: killed, stopped for a while, or hanging."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tests.soak.family import Role, members

Kind: TypeAlias = Literal["kill", "stop", "hang"]

# One round of faults. Two of them end the worker, so that it lives long in between; every quarter of a run has the
# same ones, so that its memory can be compared with another's.
ROUND: tuple[tuple[Kind, Role], ...] = (
    ("kill", "worker"),
    ("kill", "image process"),
    ("stop", "daemon"),
    ("stop", "worker"),
    ("kill", "image process"),
    ("stop", "image process"),
    ("hang", "worker"),
    ("kill", "image process"),
    ("stop", "daemon"),
    ("hang", "image process"),
    ("stop", "worker"),
    ("kill", "image process"),
    ("stop", "daemon"),
    ("stop", "image process"),
    ("stop", "worker"),
)

# Shorter than any deadline: whoever is stopped goes on as if nothing had been.
_STOP_S = 3.0

# A process that hangs is to be noticed and replaced by then; else it is let go on, and the run has failed.
HANG_LIMIT_S = 150.0


@dataclass
class Strikes:
    """Strikes `daemon_pid`'s family, and keeps what it did."""

    daemon_pid: int
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    unnoticed: list[str] = field(default_factory=list)
    noticed_s: list[float] = field(default_factory=list)

    def strike(self, kind: Kind, role: Role, stopping: threading.Event) -> None:
        """Strike one process of `role`; returns when a stop is over or a hang was noticed."""
        pid = self._pick(role)
        if pid is None:
            self.unnoticed.append(f"there is no {role} to {kind}")
            return
        self.done[f"{kind} {role}"] += 1
        if kind == "kill":
            _send(pid, signal.SIGKILL)
            return
        _send(pid, signal.SIGSTOP)
        try:
            if kind == "stop":
                stopping.wait(_STOP_S)
                return
            began_s = time.monotonic()
            while pid in members(self.daemon_pid):
                if stopping.is_set():
                    return
                if time.monotonic() - began_s > HANG_LIMIT_S:
                    self.unnoticed.append(f"a {role} that hung for {HANG_LIMIT_S:g} s was not replaced")
                    return
                stopping.wait(0.1)
            self.noticed_s.append(round(time.monotonic() - began_s, 1))
        finally:
            _send(pid, signal.SIGCONT)

    def rounds(self, every_s: float, until_s: float, stopping: threading.Event, say: Callable[[str], None]) -> None:
        """Strike each `every_s` by the clock, `ROUND` over and over, until `until_s` (monotonic)."""
        began_s = time.monotonic()
        number = 0
        while True:
            due_s = began_s + every_s * (number + 0.5)
            if due_s >= until_s or stopping.wait(max(0.0, due_s - time.monotonic())):
                return
            kind, role = ROUND[number % len(ROUND)]
            say(f"{kind} {role}")
            self.strike(kind, role, stopping)
            number += 1

    def _pick(self, role: Role) -> int | None:
        # A process that was just killed has a successor soon.
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            pids = sorted(pid for pid, found in members(self.daemon_pid).items() if found == role)
            if pids:
                return random.Random(self.seed + sum(self.done.values())).choice(pids)
            time.sleep(0.05)
        return None


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
