"""Deadlines: each has its name, progress starts it again, and what it ends is cancelled on the daemon."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, is_gone, wait_until
from tests.support.fake_server import Conversation, FakeServer, batch_lines, hello_result, hello_then, obedient
from vlmd._blocking import BlockingSignal, run
from vlmd._clock import AwakeClock
from vlmd._patience import Patience

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


def total_of(client: vlmd.Client, method: str, total_s: float = 0.2) -> str:
    """Return which deadline a job with `total_s` passes."""
    timeouts = vlmd.Timeouts(total_s=total_s)
    with pytest.raises(vlmd.DeadlineError) as caught:
        if method == "describe":
            client.describe_all(IMAGES, timeouts=timeouts)
        else:
            client.generate("p", timeouts=timeouts).text()
    return caught.value.phase


# Of a daemon that never says that it is bound.
NO_START = vlmd.Timeouts(start_s=4)


@pytest.mark.parametrize("method", ["describe", "generate"])
def test_the_whole_job_waits_no_longer_for_a_start(journal: Journal, method: str) -> None:
    journal.faults(mute=True)
    with vlmd.Client(command=COMMAND, timeouts=NO_START) as client:
        assert total_of(client, method) == "total"


@pytest.mark.anyio
async def test_nor_does_that_of_the_async_client(journal: Journal) -> None:
    journal.faults(mute=True)
    async with vlmd.AsyncClient(command=COMMAND, timeouts=NO_START) as client:
        with pytest.raises(vlmd.DeadlineError) as caught:
            await client.describe_all(IMAGES, timeouts=vlmd.Timeouts(total_s=0.2))
        assert caught.value.phase == "total"


def test_nor_for_that_of_a_shared_daemon(journal: Journal, folder: Path) -> None:
    journal.faults(mute=True)
    with vlmd.Client(socket=folder / "s", command=COMMAND, timeouts=NO_START) as client:
        phase = total_of(client, "describe")
        wait_until(lambda: len(journal.pids) == 1)
        os.kill(journal.pids[0], signal.SIGKILL)
        assert phase == "total"


def test_the_start_goes_on_for_the_next_call(journal: Journal) -> None:
    journal.faults(loading=1)
    with vlmd.Client(command=COMMAND) as client:
        assert total_of(client, "describe") == "total"
        assert client.ping().state == "ready"
    assert len(journal.pids) == 1


def test_a_start_that_hangs_is_ended_though_nobody_waits_that_long(journal: Journal) -> None:
    journal.faults(mute=True)
    with vlmd.Client(command=COMMAND, timeouts=vlmd.Timeouts(start_s=0.5)) as client:
        total_of(client, "describe")
        wait_until(lambda: bool(journal.pids))
        first = journal.pids[0]
        wait_until(lambda: bool(total_of(client, "describe")) and is_gone(first))


@pytest.mark.parametrize("method", ["describe", "generate"])
def test_nor_for_a_hello_or_for_another_call_that_waits_for_it(serve: Serve, folder: Path, method: str) -> None:
    go = threading.Event()

    def play(talk: Conversation) -> None:
        request = talk.expect("hello")
        go.wait(10)
        talk.answer(request, **hello_result())
        talk.stall()

    server = serve(play, play)
    with vlmd.Client(socket=folder / "s", start=False) as client:
        assert total_of(client, method) == "total"
        other = threading.Thread(target=client.hello)
        other.start()
        wait_until(lambda: server.connections == 2)
        assert total_of(client, method) == "total"
        go.set()
        other.join(10)


def test_nor_for_one_that_comes_back(serve: Serve, folder: Path) -> None:
    server = serve(hello_then(lambda talk: None))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        client.hello()
        server.close()
        assert total_of(client, "describe") == "total"


def test_the_callers_own_time_does_not_count(serve: Serve, folder: Path) -> None:
    serve()
    with vlmd.Client(socket=folder / "s", start=False) as client:
        for _ in client.describe(IMAGES, timeouts=vlmd.Timeouts(between_batches_s=0.1)):
            time.sleep(0.15)


class SlowSource:
    """Frames that take minutes, of a clock that goes on only then."""

    def __init__(self, runtime: object, slow: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
        self.slow_s = 0.0
        self._slow = slow
        monkeypatch.setattr(runtime, "_clock", AwakeClock(lambda: time.monotonic() + self.slow_s))

    def frames(self, count: int) -> Iterator[str]:
        for at in range(count):
            if self._slow(at):
                self.slow_s += 1000
            yield f"/{at}.png"

    async def frames_async(self, count: int) -> AsyncIterator[str]:
        for frame in self.frames(count):
            yield frame


def test_the_time_of_the_callers_iterable_is_no_silence(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    with vlmd.Client(socket=folder / "s", start=False) as client:
        source = SlowSource(client._core.runtime, lambda _: True, monkeypatch)
        assert len(client.describe_all(source.frames(12), timeouts=vlmd.Timeouts(total_s=20_000))) == 12
        with pytest.raises(vlmd.DeadlineError) as caught:
            client.describe_all(source.frames(12), timeouts=vlmd.Timeouts(total_s=5_000))
        assert caught.value.phase == "total"


def test_nor_is_it_while_frames_are_under_way(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Frames for a second request are taken after 128 of the first; what is left of both comes when it is waited for.
    waits = threading.Event()
    serve(obedient(before_batch=lambda line: (line["results"][0]["index"] >= 128 and waits.wait(10), None)[1]))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        source = SlowSource(client._core.runtime, lambda at: at == 300, monkeypatch)
        wait = BlockingSignal.wait

        async def noted(signal: BlockingSignal, until_s: float | None) -> None:
            if source.slow_s:
                waits.set()
            await wait(signal, until_s)

        monkeypatch.setattr(BlockingSignal, "wait", noted)
        assert len(client.describe_all(source.frames(400))) == 400


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_nor_is_it_for_the_async_client(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    serve()
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        await client.hello()
        source = SlowSource(client._core.runtime, lambda at: at % 40 == 0, monkeypatch)
        images = source.frames(400) if kind == "sync" else source.frames_async(400)
        assert len(await client.describe_all(images)) == 400


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


def test_a_daemon_that_was_busy_once_does_not_shorten_the_time_of_the_next_one(journal: Journal) -> None:
    with vlmd.Client(command=COMMAND) as client:
        client.ping()
        patience = Patience(
            client._core, vlmd.Timeouts(first_byte_s=120, between_batches_s=10), between_s=10,
            between="between_batches", resume=True,
        )  # fmt: skip
        patience.begin()
        patience.note_asked()
        run(patience.wait_for_room(vlmd.BusyError("full", code="busy", data={"retryAfterMs": 1}), math.inf))
        patience.note_asked()
        patience.note_piece()
        assert patience.deadline()[1] == "between_batches"
        patience.note_asked()
        assert patience.deadline()[1] == "first_byte"
        patience.note_piece()
        run(patience.wait_for_room(vlmd.BusyError("full", code="busy", data={"retryAfterMs": 1}), math.inf))
        os.kill(journal.pids[0], signal.SIGKILL)
        wait_until(lambda: client._core.current_link() is None)
        patience.note_asked()
        assert patience.deadline()[1] == "first_byte"
