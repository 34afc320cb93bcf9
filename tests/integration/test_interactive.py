"""Promise: interactive work does not wait behind batch work. Counted in frames of the batch job that end meanwhile.

Seconds are measured by ``scripts/bench --only beside``; here a busy machine must not matter.
"""

from __future__ import annotations

import statistics
import threading
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Connection, eventually

pytestmark = pytest.mark.model

# The batch decodes eight rows, and before there were slots in front three or more of them ended first.
_MAX_FRAMES_MEANWHILE = 2
_SAMPLES = 9


def test_an_interactive_request_is_answered_while_few_frames_of_a_batch_end(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    daemon = start_daemon(model="demo").wait_ready()
    images = [{"imagePath": pictures[i % len(pictures)]} for i in range(2000)]
    done: list[dict[str, Any]] = []
    stop = threading.Event()

    def read(connection: Connection) -> None:
        while not stop.is_set():
            done.append(connection.line())

    with daemon.connect() as batch, daemon.connect() as asking:
        batch.send(1, "describe_images", images=images, batchSize=1)
        reader = threading.Thread(target=read, args=(batch,))
        reader.start()
        eventually(lambda: len(done) >= 16, timeout_s=60)
        meanwhile: dict[str, list[int]] = {"text": [], "picture": []}
        for i in range(_SAMPLES):
            for kind, shown in (("text", []), ("picture", images[:1])):
                before = len(done)
                asking.send(f"{kind}{i}", "generate", prompt="What is this?", images=shown, maxTokens=8, stream=True)
                assert "delta" in asking.line()
                meanwhile[kind].append(len(done) - before)
                while not asking.line().get("done"):
                    pass
        stop.set()
        batch.send(2, "cancel", target=1)
        reader.join(30)
    medians = {kind: statistics.median(counts) for kind, counts in meanwhile.items()}
    print(f"\nframes of the batch that ended before an interactive request's first text: {meanwhile}")
    assert max(medians.values()) <= _MAX_FRAMES_MEANWHILE
