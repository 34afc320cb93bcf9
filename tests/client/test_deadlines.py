"""Deadlines: each has its name, progress starts it again, and what it ends is cancelled on the daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import vlmd
from tests.client.conftest import wait_until
from tests.support.fake_server import Conversation, FakeServer, batch_lines, hello_then, obedient

Serve = Callable[..., FakeServer]
IMAGES = [f"/{at}.png" for at in range(12)]


def loads_for(seconds: float) -> Callable[[Conversation], None]:
    def play(talk: Conversation) -> None:
        request = talk.expect("describe_images")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            talk.line(event="model", model="m", state="loading", stage="weights", fraction=0.5)
            time.sleep(0.05)
        for line in batch_lines(request):
            talk.line(**line)
        talk.stall()

    return hello_then(play)


def pauses_at(batch: int) -> Callable[[Conversation], None]:
    event = threading.Event()
    return obedient(before_batch=lambda line: (event.wait(1), None)[1] if line["batch"] == batch else None)


@pytest.mark.parametrize(
    ("timeouts", "batch", "phase", "delivered"),
    [
        (vlmd.Timeouts(first_byte_s=0.1), 1, "first_byte", 0),
        (vlmd.Timeouts(between_batches_s=0.1), 2, "between_batches", 1),
        (vlmd.Timeouts(total_s=0.1), 3, "total", 2),
    ],
)
def test_each_deadline(
    serve: Serve, folder: Path, timeouts: vlmd.Timeouts, batch: int, phase: str, delivered: int
) -> None:
    server = serve(pauses_at(batch))
    got: list[vlmd.Batch] = []
    with vlmd.Client(socket=folder / "s", start=False) as client:
        with pytest.raises(vlmd.DeadlineError) as caught:
            got.extend(client.describe(IMAGES, timeouts=timeouts))
        assert caught.value.phase == phase
        wait_until(lambda: "cancel" in server.methods())
        assert client.ping().state == "ready"
    # The batches before the deadline were delivered one by one; `extend` keeps them.
    assert len(got) == delivered


def test_load_progress_starts_the_first_deadline_again(serve: Serve, folder: Path) -> None:
    serve(loads_for(0.5))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        started = time.monotonic()
        assert len(client.describe_all(IMAGES, timeouts=vlmd.Timeouts(first_byte_s=0.2))) == 12
        assert time.monotonic() - started > 0.4


def test_the_callers_own_time_does_not_count(serve: Serve, folder: Path) -> None:
    serve()
    with vlmd.Client(socket=folder / "s", start=False) as client:
        for _ in client.describe(IMAGES, timeouts=vlmd.Timeouts(between_batches_s=0.1)):
            time.sleep(0.15)


def test_ping_has_its_own(serve: Serve, folder: Path) -> None:
    serve(hello_then(Conversation.stall))
    with vlmd.Client(socket=folder / "s", start=False, timeouts=vlmd.Timeouts(connect_s=0.1)) as client:
        with pytest.raises(vlmd.DeadlineError) as caught:
            client.ping()
        assert caught.value.phase == "first_byte"


@pytest.mark.anyio
async def test_the_async_clients_deadlines(serve: Serve, folder: Path) -> None:
    server = serve(pauses_at(2))
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        with pytest.raises(vlmd.DeadlineError):
            await client.describe_all(IMAGES, timeouts=vlmd.Timeouts(between_batches_s=0.1))
        with anyio.fail_after(5):
            while "cancel" not in server.methods():
                await anyio.sleep(0.01)


def test_a_daemon_that_reads_nothing_blocks_nobody(serve: Serve, folder: Path) -> None:
    serve(hello_then(Conversation.stall))
    long_names = [f"/{'x' * 3000}{at}.png" for at in range(256)]  # more than the socket's buffer holds
    with vlmd.Client(socket=folder / "s", start=False) as client:
        started = time.monotonic()
        with pytest.raises(vlmd.DeadlineError):
            client.describe_all(long_names, timeouts=vlmd.Timeouts(first_byte_s=0.3))
        assert time.monotonic() - started < 2
