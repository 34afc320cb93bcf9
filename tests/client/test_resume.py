"""A daemon that dies: what was delivered is kept, what was not is asked for again, and a loop of crashes ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, wait_until
from tests.support.fake_server import Conversation, FakeServer, batch_lines, hello_then, obedient
from vlmd import _breaker

Serve = Callable[..., FakeServer]
IMAGES = [f"/{at}.png" for at in range(40)]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_breaker, "_FIRST_DELAY_S", 0.01)


def check(batches: list[vlmd.Batch], count: int) -> None:
    assert [frame.index for batch in batches for frame in batch.results] == list(range(count))
    assert [batch.batch for batch in batches] == list(range(1, len(batches) + 1))
    assert [batch.progress.current for batch in batches] == [min(4 * (at + 1), count) for at in range(len(batches))]
    assert [batch.done for batch in batches] == [False] * (len(batches) - 1) + [True]


def test_a_private_daemon_that_dies_is_restarted(journal: Journal) -> None:
    journal.faults(die_at=[4, 1, 3])
    with vlmd.Client(command=COMMAND) as client:
        check(list(client.describe(IMAGES)), 40)
    assert len(journal.pids) == 4
    sent = [index for entry in journal.entries("batch") for index in entry["frames"]]
    assert sorted(sent) == list(range(40))  # nothing that was sent was asked for again


@pytest.mark.anyio
async def test_the_async_client_does_the_same(journal: Journal) -> None:
    journal.faults(die_at=[3, 2])
    async with vlmd.AsyncClient(command=COMMAND) as client:
        check([batch async for batch in client.describe(IMAGES)], 40)


def test_a_shared_daemon_that_dies_is_restarted(journal: Journal, folder: Path) -> None:
    journal.faults(die_at=[3])
    with vlmd.Client(socket=folder / "s", command=COMMAND) as client:
        check(list(client.describe(iter(IMAGES))), 40)
        client.shutdown()
    assert len(journal.pids) == 2


def test_a_restart_that_fails_is_tried_again(journal: Journal) -> None:
    journal.faults(die_at=[2], exit=1, exit_at=[2])
    with vlmd.Client(command=COMMAND) as client:
        check(list(client.describe(IMAGES)), 40)
    assert len(journal.pids) == 3


def test_without_resume_the_loss_is_raised(journal: Journal) -> None:
    journal.faults(die_at=[2])
    got: list[vlmd.Batch] = []
    with vlmd.Client(command=COMMAND, resume=False) as client:
        with pytest.raises(vlmd.ConnectionLostError, match="about to crash") as caught:
            got.extend(client.describe(IMAGES))
        assert "was ended by SIGKILL" in str(caught.value)
        assert len(got) == 1
        assert client.ping().state == "ready"
    assert len(journal.pids) == 2


def test_a_kill_is_noticed_within_a_second(journal: Journal) -> None:
    journal.faults(pause_s=20)
    killed_s: list[float] = []

    def kill() -> None:
        wait_until(lambda: bool(journal.pids))
        killed_s.append(time.monotonic())
        os.kill(journal.pids[0], signal.SIGKILL)

    with vlmd.Client(command=COMMAND, resume=False) as client:
        client.hello()
        timer = threading.Timer(0.2, kill)
        timer.start()
        with pytest.raises(vlmd.ConnectionLostError):
            client.describe_all(IMAGES)
        noticed_s = time.monotonic() - killed_s[0]
        timer.join()
    print(f"noticed after {noticed_s * 1000:.0f} ms")
    assert noticed_s < 1


def test_five_crashes_in_three_minutes_are_a_loop(journal: Journal) -> None:
    journal.faults(die_at=[1] * 20)
    with vlmd.Client(command=COMMAND) as client:
        with pytest.raises(vlmd.CrashLoopError, match="about to crash"):
            client.describe_all(IMAGES)
        assert len(journal.pids) == 5
        with pytest.raises(vlmd.CrashLoopError):
            client.ping()
    assert len(journal.pids) == 5


def test_the_breaker_forgets() -> None:
    breaker = _breaker.Breaker()
    for now_s in (0.0, 50.0, 100.0, 150.0):
        breaker.note(now_s)
        assert not breaker.is_loop(now_s)
    breaker.note(181.0)
    assert not breaker.is_loop(181.0)  # the first is more than three minutes ago
    breaker.note(182.0)
    assert breaker.is_loop(182.0)
    assert not breaker.is_loop(400.0)
    delays = [_breaker.Breaker().delay_s(0.0)]
    growing = _breaker.Breaker()
    for _ in range(4):
        growing.note(0.0)
        delays.append(growing.delay_s(0.0))
    assert delays == sorted(delays)


def dies_after(batches: int) -> Callable[[Conversation], None]:
    def play(talk: Conversation) -> None:
        for line in batch_lines(talk.expect("describe_images")):
            if line["batch"] > batches:
                talk.send(b'{"id": 2, "batch"')  # half a line
                return
            talk.line(**line)

    return hello_then(play)


def test_an_attached_client_reconnects(serve: Serve, folder: Path) -> None:
    server = serve(dies_after(3), dies_after(0), obedient())
    with vlmd.Client(socket=folder / "s", start=False) as client:
        check(list(client.describe(IMAGES)), 40)
    asked = [len(m["params"]["images"]) for m in server.received if m["method"] == "describe_images"]
    assert asked == [40, 28, 28]


def test_an_attached_client_gives_up_at_its_deadline(serve: Serve, folder: Path) -> None:
    server = serve(dies_after(3))
    got = []
    with vlmd.Client(socket=folder / "s", start=False, timeouts=vlmd.Timeouts(connect_s=0.3)) as client:
        batches = client.describe(IMAGES)
        got.append(next(batches))
        wait_until(lambda: client._core.current_link() is None)
        server.close()
        started = time.monotonic()
        with pytest.raises(vlmd.ConnectionLostError, match="did not come back"):
            got.extend(batches)
        assert time.monotonic() - started < 2
    assert len(got) == 3
