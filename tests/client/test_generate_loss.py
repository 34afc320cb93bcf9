"""A generation whose daemon dies or is late: asked once more before its first piece, ended after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, wait_until
from tests.support.fake_server import Conversation, FakeServer, generate_lines, hello_then, obedient
from vlmd import _breaker

Serve = Callable[..., FakeServer]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_breaker, "_FIRST_DELAY_S", 0.01)


def test_before_its_first_piece_it_is_asked_again(journal: Journal) -> None:
    journal.faults(die_at=[1])
    with vlmd.Client(command=COMMAND) as client:
        assert client.generate("p").text() == "Echo: p"
    assert len(journal.pids) == 2


@pytest.mark.anyio
async def test_of_the_async_client_too(journal: Journal) -> None:
    journal.faults(die_at=[1])
    async with vlmd.AsyncClient(command=COMMAND) as client:
        assert await client.generate("p").text() == "Echo: p"
    assert len(journal.pids) == 2


def test_but_once(journal: Journal) -> None:
    journal.faults(die_at=[1, 1])
    with vlmd.Client(command=COMMAND) as client:
        with pytest.raises(vlmd.ConnectionLostError, match="about to crash"):
            client.generate("p").text()
        assert client.generate("p").text() == "Echo: p"
    assert len(journal.pids) == 3


def test_not_without_resume(journal: Journal) -> None:
    journal.faults(die_at=[1])
    with vlmd.Client(command=COMMAND) as client:
        with pytest.raises(vlmd.ConnectionLostError):
            client.generate("p", resume=False).text()
        assert client.count_tokens("p").fits


def test_after_its_first_piece_it_ends(journal: Journal) -> None:
    journal.faults(die_at=[3])
    with vlmd.Client(command=COMMAND) as client:
        generation = client.generate("p")
        got: list[str] = []
        with pytest.raises(vlmd.ConnectionLostError, match="about to crash"):
            got.extend(generation)
        assert "".join(got) == generation.text_so_far == "Echo: "
        with pytest.raises(vlmd.ConnectionLostError):
            generation.text()
    assert len(journal.pids) == 1


def test_an_attached_client_asks_again_where_it_comes_back(serve: Serve, folder: Path) -> None:
    server = serve(hello_then(lambda talk: (talk.expect("generate"), None)[1]), obedient())
    with vlmd.Client(socket=folder / "s", start=False) as client:
        assert client.generate("p").text() == "Echo: p"
    assert server.methods() == ["generate", "generate"]


def test_count_tokens_is_asked_again(serve: Serve, folder: Path) -> None:
    server = serve(hello_then(lambda talk: (talk.expect("count_tokens"), None)[1]), obedient())
    with vlmd.Client(socket=folder / "s", start=False) as client:
        assert client.count_tokens("p").fits
    assert server.methods() == ["count_tokens", "count_tokens"]


# --- deadlines ------------------------------------------------------------------------------------------------


def pauses_at(piece: int) -> Callable[[Conversation], None]:
    event = threading.Event()
    count: list[object] = []

    def before(line: object) -> None:
        count.append(line)
        if len(count) == piece:
            event.wait(1)

    return obedient(before_delta=before)


@pytest.mark.parametrize(
    ("timeouts", "piece", "phase", "text"),
    [
        (vlmd.Timeouts(first_byte_s=0.1), 1, "first_byte", ""),
        (vlmd.Timeouts(between_deltas_s=0.1), 2, "between_deltas", "Ech"),
        (vlmd.Timeouts(total_s=0.1), 3, "total", "Echo: "),
    ],
)
def test_each_deadline(serve: Serve, folder: Path, timeouts: vlmd.Timeouts, piece: int, phase: str, text: str) -> None:
    server = serve(pauses_at(piece))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        generation = client.generate("p", timeouts=timeouts)
        with pytest.raises(vlmd.DeadlineError) as caught:
            generation.text()
        assert caught.value.phase == phase
        assert generation.text_so_far == text
        wait_until(lambda: "cancel" in server.methods())
        assert client.ping().state == "ready"


def test_load_progress_starts_the_first_deadline_again(serve: Serve, folder: Path) -> None:
    def play(talk: Conversation) -> None:
        request = talk.expect("generate")
        for _ in range(10):
            talk.line(event="model", model="m", state="loading", stage="weights", fraction=0.5)
            time.sleep(0.05)
        for line in generate_lines(request):
            talk.line(**line)
        talk.stall()

    serve(hello_then(play))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        assert client.generate("p", timeouts=vlmd.Timeouts(first_byte_s=0.3)).text() == "Echo: p"


def test_the_callers_own_time_does_not_count(serve: Serve, folder: Path) -> None:
    serve()
    with vlmd.Client(socket=folder / "s", start=False) as client:
        for _ in client.generate("p", timeouts=vlmd.Timeouts(between_deltas_s=0.1)):
            time.sleep(0.12)


def test_count_tokens_has_the_first(serve: Serve, folder: Path) -> None:
    server = serve(hello_then(lambda talk: [*talk.lines()].clear()))
    with vlmd.Client(socket=folder / "s", start=False) as client:
        with pytest.raises(vlmd.DeadlineError) as caught:
            client.count_tokens("p", timeouts=vlmd.Timeouts(first_byte_s=0.1))
        assert caught.value.phase == "first_byte"
        wait_until(lambda: "cancel" in server.methods())


def test_one_that_is_left_while_a_daemon_starts(journal: Journal) -> None:
    journal.faults(loading=0.3)
    with vlmd.Client(command=COMMAND) as client:
        generation = client.generate("p")
        errors: list[BaseException] = []

        def work() -> None:
            try:
                generation.text()
            except vlmd.VlmdError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: bool(journal.pids))
        generation.close()
        thread.join(10)
        assert isinstance(errors[0], vlmd.CancelledError_)
        assert client.generate("q").text() == "Echo: q"


def test_to_close_fails_who_waits(serve: Serve, folder: Path) -> None:
    server = serve(hello_then(Conversation.stall))
    errors: list[BaseException] = []
    client = vlmd.Client(socket=folder / "s", start=False)

    def work() -> None:
        try:
            client.generate("p").text()
        except vlmd.VlmdError as error:
            errors.append(error)

    client.hello()
    thread = threading.Thread(target=work)
    thread.start()
    server.wait_for(lambda: client._core._link is not None and bool(client._core._link._session.pending))
    client.close()
    thread.join(5)
    assert isinstance(errors[0], vlmd.ClosedError)
