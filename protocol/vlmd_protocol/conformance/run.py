"""Chooses cases, plays them, and says how each ended."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from vlmd_protocol.conformance.player import DEFAULT_TIMEOUT_S, CaseFailed, Player
from vlmd_protocol.vectors import Case, load_folder

FOLDERS: Final = ("dialogue", "adr006")

# What a case may need of the server; README.md of the vectors says what each means.
NEEDS: Final = ("model", "fake", "slow", "loading", "disposable", "adr-socket")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a case ended.

    Attributes:
        case: its address, such as ``dialogue/order.jsonl#plain-in-order``.
        status: ``pass``, ``fail`` or ``skip``.
        why: what went wrong, or what the case needs.
        seconds: how long it took.
    """

    case: str
    status: str
    why: str = ""
    seconds: float = 0.0


def choose(pattern: str | None = None) -> list[tuple[str, Case]]:
    """Return the dialogues whose address contains or matches `pattern`."""
    found = [pair for folder in FOLDERS for pair in load_folder(folder)]
    if pattern is None:
        return found
    return [(name, case) for name, case in found if pattern in name or fnmatchcase(name, pattern)]


def run(
    socket_path: str,
    cases: Iterable[tuple[str, Case]],
    *,
    have: Collection[str] = (),
    adr_socket_path: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Iterator[Outcome]:
    """Play `cases` one after the other.

    Args:
        socket_path: the server's socket.
        cases: addresses and cases.
        have: which of `NEEDS` the server meets.
        adr_socket_path: its listener for ADR-006's adapter.
        timeout_s: deadline of each expectation.
    """
    met = {*have, *(["adr-socket"] if adr_socket_path is not None else [])}
    for name, case in cases:
        missing = [need for need in case.get("needs", []) if need not in met]
        if missing:
            yield Outcome(case=name, status="skip", why=f"needs {', '.join(missing)}")
            continue
        path = adr_socket_path if "adr-socket" in case.get("needs", []) else socket_path
        assert path is not None
        started = time.monotonic()
        status, why = "pass", ""
        with tempfile.TemporaryDirectory(prefix="vlmd-c-") as folder:
            try:
                Player(path, Path(folder), timeout_s=timeout_s).play(case)
            except CaseFailed as failure:
                status, why = "fail", str(failure)
        yield Outcome(case=name, status=status, why=why, seconds=time.monotonic() - started)
