"""To leave a `describe` from another thread or task, whatever it does just then: nothing more is asked or started."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, wait_until
from tests.support.fake_server import Conversation, FakeServer, Message, hello_result, obedient

Serve = Callable[..., FakeServer]
IMAGES = [f"/{at}.png" for at in range(40)]

# Batches of the first request that are sent; with them, the second is asked for, while the first is under way.
_SENT = 40


@pytest.fixture
def client(folder: Path) -> Iterator[vlmd.Client]:
    with vlmd.Client(socket=folder / "s", start=False) as made:
        yield made


def says_hello_at(go: threading.Event) -> Callable[[Conversation], None]:
    def play(talk: Conversation) -> None:
        request = talk.expect("hello")
        go.wait(10)
        talk.answer(request, **hello_result())
        obedient()(talk)

    return play


def sends_some(go: threading.Event) -> Callable[[Message], None]:
    return lambda line: None if line["batch"] <= _SENT else (go.wait(10), None)[1]


def requests(server: FakeServer, method: str) -> list[Message]:
    return [message for message in server.received if message["method"] == method]


def test_while_it_connects(serve: Serve, client: vlmd.Client) -> None:
    go = threading.Event()
    server = serve(says_hello_at(go))
    batches = client.describe(IMAGES)
    got: list[vlmd.Batch] = []
    reader = threading.Thread(target=lambda: got.extend(batches))
    reader.start()
    wait_until(lambda: bool(server.received))
    batches.close()
    go.set()
    reader.join(10)
    assert not reader.is_alive()
    assert got == []
    assert client.ping().state == "ready"  # on the same connection: what came before it was read before it
    assert server.methods() == ["ping"]


@pytest.mark.anyio
async def test_while_the_async_client_connects(serve: Serve, folder: Path) -> None:
    go = threading.Event()
    server = serve(says_hello_at(go))
    got: list[vlmd.Batch] = []
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        batches = client.describe(IMAGES)

        async def read() -> None:
            got.extend([batch async for batch in batches])

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while not server.received:
                    await anyio.sleep(0.01)
                await batches.aclose()
                go.set()
        assert got == []
        assert (await client.ping()).state == "ready"
    assert server.methods() == ["ping"]


@pytest.mark.parametrize("method", ["describe", "generate"])
def test_while_it_waits_for_the_next_start(journal: Journal, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    journal.faults(die_at=[1])
    with vlmd.Client(command=COMMAND) as client:
        run = client.describe(IMAGES) if method == "describe" else client.generate("p")
        delays: list[float] = []

        def delay_s() -> float:
            delays.append(0.0)
            run.close()  # as another thread might, at this moment or a little later
            return 0.0

        monkeypatch.setattr(client._core.connector, "delay_s", delay_s)
        assert list(run) == []
    assert len(delays) == 1
    assert len(journal.pids) == 1


@pytest.mark.parametrize("moment", ["take", "post"])
def test_while_a_request_is_under_way(
    serve: Serve, client: vlmd.Client, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    go = threading.Event()
    server = serve(obedient(before_batch=sends_some(go)))

    def images() -> Iterator[str]:
        for at in range(1000):
            if moment == "take" and at == 300:
                batches.close()  # as another thread might, while this one is held up
            yield f"/{at}.png"

    batches = client.describe(images())
    next(batches)
    link = client._core.current_link()
    assert link is not None
    post = link.post

    def left_before(*args: Any) -> int:
        batches.close()
        return post(*args)

    if moment == "post":
        monkeypatch.setattr(link, "post", left_before)
    assert len(list(batches)) < _SENT
    monkeypatch.undo()
    assert client.ping().state == "ready"
    asked = [message["id"] for message in requests(server, "describe_images")]
    assert len(asked) == (1 if moment == "take" else 2)
    assert sorted(message["params"]["target"] for message in requests(server, "cancel")) == asked
    go.set()


@pytest.mark.anyio
async def test_while_the_async_clients_source_makes_it_wait(serve: Serve, folder: Path) -> None:
    go = threading.Event()
    server = serve(obedient(before_batch=sends_some(go)))

    async def images() -> AsyncIterator[str]:
        for at in range(1000):
            if at == 300:
                await batches.aclose()
            yield f"/{at}.png"

    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        batches = client.describe(images())
        assert len([batch async for batch in batches]) < _SENT
        assert (await client.ping()).state == "ready"
    assert len(requests(server, "describe_images")) == len(requests(server, "cancel")) == 1
    go.set()
