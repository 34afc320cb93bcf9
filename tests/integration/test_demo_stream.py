"""Promise: lines come as frames are done: the first before a quarter of the time, and no gap longer than that."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from vlmd_bridge.demo import recording

FRAMES = 48
ROUNDS = 3

pytestmark = pytest.mark.model


def test_48_frames_at_batch_4_stream_evenly(start_daemon: StartDaemon, tmp_path: Path) -> None:
    images = []
    for i, frame in enumerate(recording(48, FRAMES)):
        path = tmp_path / f"{i:02d}.png"
        frame.image.save(path)
        images.append({"imagePath": str(path), "timestamp": float(i)})
    daemon = start_daemon(model="demo").wait_ready()
    best = (1.0, 1.0)
    with daemon.connect() as connection:
        connection.ask("warm", "describe_images", images=images[:8])
        for number in range(ROUNDS):
            start = time.perf_counter()
            connection.send(number, "describe_images", images=images, batchSize=4)
            times_s = [0.0]
            done = False
            while not done:
                done = connection.line().get("done", False)
                times_s.append(time.perf_counter() - start)
            assert len(times_s) == 1 + FRAMES // 4
            total_s = times_s[-1]
            gaps = [(after - before) / total_s for before, after in itertools.pairwise(times_s)]
            print(f"\nfirst line after {gaps[0]:.1%}, longest gap {max(gaps):.1%} of {total_s:.2f} s")
            best = min(best, (max(gaps), gaps[0]))
    # The machine's other work shows as a gap in a round; it does not in every round.
    assert best[0] < 0.25
