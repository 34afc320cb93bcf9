"""Promise 14: SIGSTOP of the daemon: the client times out at its deadline, starts no second, recovers on SIGCONT.

Where both are stopped, as on a machine that sleeps, nothing times out at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import vlmd
from tests.faults.figures import figure, rounds
from tests.support.daemon import eventually

_COMMAND = [sys.executable, "-P", "-m", "vlmd"]
_DEADLINE_S = 1.0


@pytest.fixture
def client() -> Iterator[vlmd.Client]:
    timeouts = vlmd.Timeouts(connect_s=_DEADLINE_S, first_byte_s=_DEADLINE_S)
    with vlmd.Client(model="fake", command=_COMMAND, timeouts=timeouts) as client:
        eventually(lambda: client.status().state == "ready", what="the model")
        yield client


def _owned_daemons() -> list[int]:
    found = []
    for child in psutil.Process().children():
        # Shared ones of other tests may still be about to leave.
        with contextlib.suppress(psutil.Error):
            if "--owned" in child.cmdline():
                found.append(child.pid)
    return found


def test_a_stopped_daemon(client: vlmd.Client, pictures: list[str]) -> None:
    count = rounds(push=3, long=20)
    late_s = []
    (pid,) = _owned_daemons()
    for at in range(count):
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(vlmd.DeadlineError):
            if at % 2:
                client.ping()
            else:
                list(client.describe(pictures[:4]))
        late_s.append(time.monotonic() - began_s - _DEADLINE_S)
        assert _owned_daemons() == [pid]
        os.kill(pid, signal.SIGCONT)
        frames = [frame for batch in client.describe(pictures[:4]) for frame in batch.results]
        assert len(frames) == 4 and client.hello().pid == pid
    assert _owned_daemons() == [pid]
    figure("14", rounds=count, most_late_ms=round(1000 * max(late_s)), second_daemons=0)
    assert max(late_s) < 1.0


_SLEEPER = """
import sys, time
import vlmd
timeouts = vlmd.Timeouts(connect_s=4.0, first_byte_s=4.0, between_batches_s=4.0)
with vlmd.Client(model="fake:step_ms=5,tokens=30,width=4", command=sys.argv[1].split(), timeouts=timeouts) as client:
    frames = 0
    for batch in client.describe(sys.argv[2:]):
        frames += len(batch.results)
        print(client.hello().pid, frames, flush=True)
"""


def test_client_and_daemon_that_are_stopped_together(pictures: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLEEPER, " ".join(_COMMAND), *pictures]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sleeper:
        assert sleeper.stdout is not None
        pid = int(sleeper.stdout.readline().split()[0])
        family = [sleeper.pid, pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        for each in family:
            os.kill(each, signal.SIGSTOP)
        time.sleep(7)  # longer than every deadline: the time itself is what is tested
        for each in family:  # the client first, as the one that could be too hasty
            os.kill(each, signal.SIGCONT)
        lines = sleeper.stdout.read().splitlines()
        assert sleeper.wait(30) == 0
    assert lines[-1] == f"{pid} {len(pictures)}"
    figure("14, both stopped", seconds=7, deadline_s=4, frames=len(pictures), lost=0)
