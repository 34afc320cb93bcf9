"""The dialogues against live daemons on the fake model; prints how many were played."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually
from tests.vectors.schema_check import SCHEMA, errors
from vlmd_protocol.conformance import CaseFailed, Player
from vlmd_protocol.conformance.run import choose
from vlmd_protocol.methods import ANSWERS
from vlmd_protocol.vectors import Case

# Eight pictures take about half a second: time enough for a cancel, or for what must overtake them.
SLOW = "fake:step_ms=8,tokens=40,width=4"
LOADING = "fake:load_s=1.5"

DIALOGUES = choose()


@pytest.fixture(scope="module")
def quick() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
    daemon = Daemon("--adr-socket", str(folder / "adr.sock"), folder=folder)
    daemon.wait_ready()
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def slow() -> Iterator[Daemon]:
    daemon = Daemon(model=SLOW).wait_ready()
    yield daemon
    # Whatever the dialogues broke off, nothing of it is left.
    eventually(lambda: not any(daemon.status()["queue"].values()), what="an empty queue")
    eventually(lambda: daemon.status()["connections"] == 1, what="the end of the other connections")
    daemon.close()


@pytest.fixture
def server(case: Case, request: pytest.FixtureRequest, start_daemon: StartDaemon) -> Daemon:
    needs = case.get("needs", [])
    if "loading" in needs:
        return start_daemon(model=LOADING).wait_bound()
    if "disposable" in needs:
        return start_daemon("--drain-timeout", "2", model=SLOW).wait_ready()
    daemon = request.getfixturevalue("slow" if "slow" in needs else "quick")
    assert isinstance(daemon, Daemon)
    return daemon


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in DIALOGUES])
def test_dialogue(case: Case, server: Daemon, tmp_path: Path) -> None:
    adr = "adr-socket" in case.get("needs", [])
    path = server.folder / "adr.sock" if adr else server.socket_path
    try:
        Player(str(path), tmp_path, on_line=check_separate_done if adr else check).play(case)
    except CaseFailed as failure:
        pytest.fail(str(failure))


def check(line: dict[str, Any]) -> None:
    """Check a line of the daemon: it validates, and has no field that the protocol does not have."""
    assert errors(line, "Line") == [], line
    assert line.keys() <= FIELDS
    if "result" in line:
        assert any(errors(line["result"], name) == [] and line["result"].keys() <= known(name) for name in RESULTS), (
            line
        )
    for result in line.get("results", []):
        assert result.keys() <= known("FrameResult")


def check_separate_done(line: dict[str, Any]) -> None:
    """The same where the last batch comes without `done`."""
    check({**line, "done": True} if line.get("partial") is False else line)


def known(name: str) -> set[str]:
    return set(SCHEMA["$defs"][name]["properties"])


RESULTS = [answer.result.__name__ for answer in ANSWERS.values() if answer.result is not None]
FIELDS = {key for line in SCHEMA["$defs"]["Line"]["anyOf"] for key in known(line["$ref"].rsplit("/", 1)[1])}
