"""Promise: with the store on, a program that was killed in the middle and runs again infers only what was missing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmd
from tests.client.conftest import inferred, wait_until

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("PIL", "numpy", "psutil"))), reason="the daemon's packages are not installed"
)

FRAMES = 48

# Describes the pictures it is given with a shared daemon, and says what each shows as it comes.
PROGRAM = """
import json, sys, vlmd
with vlmd.Client(sys.argv[1], shared=True, socket=sys.argv[2], python=sys.executable) as client:
    for batch in client.describe(sys.argv[3:], cache=True):
        for frame in batch.results:
            print(json.dumps([frame.index, frame.description, frame.cached, frame.ok]), flush=True)
"""


def draw(folder: Path) -> list[str]:
    """Save screens of the demonstration's world, no two alike."""
    from vlmd_bridge.demo import recording

    paths = []
    for at, frame in enumerate(recording(48, FRAMES)):
        path = folder / f"{at:02}.png"
        frame.image.save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the shared daemon, which has a store of its own."""
    monkeypatch.setenv("VLMD_CACHE_FILE", str(folder / "results.db"))
    path = folder / "s"
    yield path
    with vlmd.Client(shared=True, socket=path, start=False) as client:
        client.shutdown()
    wait_until(lambda: not path.exists(), timeout_s=20)


@pytest.mark.parametrize("model", ["fake:step_ms=10,tokens=40,width=4", pytest.param("demo", marks=pytest.mark.model)])
def test_what_a_killed_program_had_inferred_is_not_inferred_again(folder: Path, socket: Path, model: str) -> None:
    command = [sys.executable, "-c", PROGRAM, model, str(socket), *draw(folder)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    first = [json.loads(killed.stdout.readline()) for _ in range(12)]
    os.kill(killed.pid, signal.SIGKILL)
    first += [json.loads(line) for line in killed.stdout]
    killed.wait()
    killed.stdout.close()
    with vlmd.Client(shared=True, socket=socket, start=False) as watching:
        wait_until(lambda: watching.status().queue.jobs == 0)  # its work ended with it
        before = watching.status()
        done = inferred(before)
        assert len(first) <= done < FRAMES
        assert before.frames_done == done
        wait_until(lambda: watching.cache().entries == done)
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
        after = watching.status()
    second = [json.loads(line) for line in again.stdout.splitlines()]
    assert [index for index, *_ in second] == list(range(FRAMES))
    assert all(ok for *_, ok in second)
    assert [description for _, description, *_ in second[: len(first)]] == [description for _, description, *_ in first]
    assert inferred(after) == FRAMES
    assert after.frames_cached == sum(cached for _, _, cached, _ in second) == done
    print(f"\n{model}: killed after {len(first)} of {FRAMES} frames; the next run inferred {FRAMES - done}, none twice")
