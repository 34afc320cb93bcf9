"""Promise 4: a daemon killed at any moment is told within a second by a typed error, delivered batches stay intact, and
resuming runs only the rest: nothing lost, nothing twice, nothing to clean up by hand.

With real daemons on the fake engine, and a round on the demo model. The TypeScript client's own rounds are in
``clients/typescript/test/resume.test.ts``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
import pytest

import vlmd
from tests.faults.figures import figure, rounds
from tests.support.daemon import eventually, gone

ROUNDS = rounds(push=50, long=500)

_NOTICED_S = 1.0
_SEED = 4

# Rounds side by side: most of a round is a start.
_LANES = 2

# A job of about a quarter of a second.
_MODEL = "fake:step_ms=3,tokens=12,width=4"
_BATCH_SIZE = 3
_FRAMES = 24


@dataclass
class Seen:
    """What the rounds saw."""

    resumed: int = 0
    raised: int = 0
    late: int = 0
    noticed_s: list[float] = field(default_factory=list)
    rerun: Counter[int] = field(default_factory=Counter)


class Assassin:
    """Kills `pid` after `after_s`, on a thread."""

    def __init__(self, pid: int, after_s: float) -> None:
        self.killed_s = 0.0
        self._pid = pid
        self._timer = threading.Timer(after_s, self._kill)
        self._timer.start()

    def _kill(self) -> None:
        self.killed_s = time.monotonic()
        os.kill(self._pid, signal.SIGKILL)

    def done(self) -> None:
        """Wait for it; the victim need not be asked any more."""
        self._timer.join()


def describe(client: vlmd.Client, paths: list[str], indices: range, into: list[vlmd.Frame[None]]) -> None:
    """Describe the frames of `indices`, each under its own index, and keep them batch by batch."""
    images = [vlmd.Image(paths[at], index=at) for at in indices]
    for batch in client.describe(images, batch_size=_BATCH_SIZE):
        into += batch.results


def said(frames: list[vlmd.Frame[None]]) -> list[tuple[int, str | None, str]]:
    return [(frame.index, frame.error, frame.description) for frame in frames]


def own(model: str, *, resume: bool) -> vlmd.Client:
    return vlmd.Client(model, shared=False, python=sys.executable, resume=resume, log=lambda _: None)


def one_round(model: str, paths: list[str], calm: list[tuple[int, str | None, str]], longest_s: float,
              seed: int, seen: Seen) -> None:  # fmt: skip
    rng = random.Random(seed)
    resume = rng.random() < 0.5
    frames: list[vlmd.Frame[None]] = []
    with own(model, resume=resume) as client:
        victim = client.hello().pid
        family = [psutil.Process(victim), *psutil.Process(victim).children(recursive=True)]
        assassin = Assassin(victim, rng.uniform(0, longest_s))
        try:
            describe(client, paths, range(len(paths)), frames)
        except vlmd.ConnectionLostError:
            noticed_s = time.monotonic() - assassin.killed_s
            assert not resume
            assert noticed_s < _NOTICED_S, f"told after {noticed_s:.2f} s"
            seen.noticed_s.append(noticed_s)
            seen.raised += 1
            assert said(frames) == calm[: len(frames)]
            assert len(frames) % _BATCH_SIZE == 0
            describe(client, paths, range(len(frames), len(paths)), frames)
        assassin.done()
        assert said(frames) == calm
        try:
            status = client.status()
        except vlmd.ConnectionLostError:
            # Killed after the last line: the first call finds out, the next one has a daemon again.
            status = client.status()
        assert status.pid != victim
        if resume:
            # At most the frames that had not been delivered ran again.
            seen.rerun[status.frames_done] += 1
            seen.resumed += status.frames_done > 0
            assert status.frames_done <= len(paths)
        seen.late += status.frames_done == 0
        family += [psutil.Process(status.pid), *psutil.Process(status.pid).children(recursive=True)]
    eventually(lambda: gone(family), 10, "the end of every process")


def test_killed_at_random_points(pictures: list[str]) -> None:
    pictures = pictures[:_FRAMES]
    calm: list[vlmd.Frame[None]] = []
    with own(_MODEL, resume=False) as client:
        client.hello()
        eventually(lambda: client.ping().state == "ready")
        began_s = time.monotonic()
        describe(client, pictures, range(len(pictures)), calm)
        took_s = time.monotonic() - began_s
    seen = Seen()
    began_s = time.monotonic()
    with ThreadPoolExecutor(_LANES) as pool:
        done = [
            # A third more than the job takes: also while it loads, and after the last line.
            pool.submit(one_round, _MODEL, pictures, said(calm), 1.3 * took_s + 0.3, _SEED + number, seen)
            for number in range(ROUNDS)
        ]
        for future in done:
            future.result()
    figure(
        "4", kills=ROUNDS, resumed=seen.resumed, raised=seen.raised, after_the_last_line=seen.late,
        noticed_within_ms=round(1000 * max(seen.noticed_s)), lost=0, twice=0,
        took_s=round(time.monotonic() - began_s, 1),
    )  # fmt: skip
    assert seen.resumed > ROUNDS // 10
    assert seen.raised > ROUNDS // 10
    # Killed in the middle, a job's successor did less than all of it.
    assert any(0 < ran < len(pictures) for ran in seen.rerun)


@pytest.mark.model
def test_on_the_demo_model(pictures: list[str]) -> None:
    paths = pictures[:12]
    calm: list[vlmd.Frame[None]] = []
    with own("demo", resume=True) as client:
        describe(client, paths, range(len(paths)), calm)
    frames: list[vlmd.Frame[None]] = []
    with own("demo", resume=True) as client:
        victim = client.hello().pid
        for batch in client.describe(paths, batch_size=_BATCH_SIZE):
            frames += batch.results
            if batch.batch == 2:
                os.kill(victim, signal.SIGKILL)
        status = client.status()
    assert said(frames) == said(calm)
    assert status.pid != victim
    assert status.frames_done <= len(paths) - 2 * _BATCH_SIZE
    figure("4", demo_frames_run_again=status.frames_done, demo_frames=len(paths))
