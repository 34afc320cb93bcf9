"""Promise 5: kill -9 of a worker or image process: the socket stays up and other clients are answered.

Frames in flight are tried once more; a frame that kills twice fails alone, as `worker_crashed`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import StartDaemon
from tests.faults.figures import figure, rounds
from tests.support.daemon import Daemon, results

_MODEL = "fake:step_ms=2,tokens=12,width=4"


@pytest.fixture
def answered(daemon_under_test: Daemon) -> Iterator[list[float]]:
    """Another client that asks all the while; the seconds that each of its answers took."""
    took_s: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with daemon_under_test.connect() as connection:
            while not over.is_set():
                began_s = time.monotonic()
                connection.ask(len(took_s), "ping")
                took_s.append(time.monotonic() - began_s)
                over.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    yield took_s
    over.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def daemon_under_test(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(model=_MODEL).wait_ready()


def test_kill_9_of_a_worker_or_image_process(
    daemon_under_test: Daemon, answered: list[float], pictures: list[str]
) -> None:
    daemon, count, chance = daemon_under_test, rounds(push=50, long=200), random.Random(5)
    images = [{"imagePath": path} for path in pictures[:8]]
    calm = [result["description"] for result in results(daemon.ask("describe_images", images=images))]
    killed = retried = 0
    with daemon.connect() as connection:
        for at in range(count):
            status = daemon.status()
            victim = status["models"][0].get("pid") if at % 2 else next(iter(status["imageProcesses"]), None)
            connection.send(at, "describe_images", images=images)
            time.sleep(chance.uniform(0, 0.05))  # a random point of the work is what is wanted
            if victim is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
            found = results(connection.answer())
            assert [result["description"] for result in found] == calm, f"round {at}"
            retried += len(found)
    assert killed >= 0.8 * count
    assert not daemon.status()["framesFailed"]
    ordered = sorted(answered)
    figure(
        "5",
        kills=killed,
        frames=retried,
        frames_lost=0,
        others_answered=len(ordered),
        others_p99_ms=round(1000 * ordered[int(0.99 * len(ordered))], 1),
    )
    assert ordered[-1] < 2.0


@pytest.mark.parametrize("model", ["fake:width=4", "demo"])
def test_a_frame_that_kills_twice_fails_alone(start_daemon: StartDaemon, pictures: list[str], model: str) -> None:
    images = [{"imagePath": path, "timestamp": 10.0 * at} for at, path in enumerate(pictures[:8])]
    # The label of a frame stands in its prompt, whatever the model makes of the picture.
    daemon = start_daemon(model=model, faults="worker.kill@text:(timestamp: 50x*").wait_ready()
    found = results(daemon.ask("describe_images", images=images))
    assert [result.get("code") for result in found] == [None] * 5 + ["worker_crashed"] + [None] * 2
    (again,) = results(daemon.ask("describe_images", images=images[:1]))
    assert "error" not in again
    figure(f"5, {model.partition(':')[0]}", frames=8, crashed_alone=1, others=7)
