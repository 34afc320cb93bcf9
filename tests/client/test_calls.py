"""Calls and `describe` of both clients against a scripted server."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

import vlmd
from tests.client.conftest import wait_until
from tests.support.fake_server import Conversation, FakeServer, Message, batch_lines, hello_then, obedient
from vlmd_protocol.limits import MAX_FRAME_BYTES

Serve = Callable[..., FakeServer]


@pytest.fixture
def client(folder: Path) -> Iterator[vlmd.Client]:
    with vlmd.Client(socket=folder / "s", start=False) as made:
        yield made


def test_hello_ping_and_status(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    assert client.ping().state == "ready"
    assert client.status().queue.jobs == 0
    assert client.hello().models[0].name == "fake"
    assert server.connections == 1


@pytest.mark.anyio
async def test_the_async_client_does_the_same(serve: Serve, folder: Path) -> None:
    serve()
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        assert (await client.ping()).state == "ready"
        assert (await client.status()).queue.jobs == 0
        assert (await client.hello()).pid == 1
        frames = await client.describe_all([f"/{at}.png" for at in range(9)], batch_size=2)
        assert [frame.index for frame in frames] == list(range(9))
        assert (await client.shutdown()).state == "draining"
    with pytest.raises(vlmd.ClosedError):
        await client.ping()


@pytest.mark.anyio
async def test_the_async_client_outside_async_with() -> None:
    with pytest.raises(vlmd.ClosedError, match="async with"):
        await vlmd.AsyncClient().ping()


def test_batches_frames_and_progress(serve: Serve, client: vlmd.Client) -> None:
    serve()
    seen: list[vlmd.Progress] = []
    images: list[vlmd.ImageLike] = [
        "/a.png",
        Path("/b.png"),
        ("/c.png", 2.5),
        vlmd.Image("/d.png", timestamp=3, index=70, id="d"),
        "/e.png",
    ]
    batches = list(client.describe(images, batch_size=2, on_progress=seen.append))
    assert [(batch.batch, len(batch.results), batch.done) for batch in batches] == [
        (1, 2, False),
        (2, 2, False),
        (3, 1, True),
    ]
    assert [(progress.current, progress.total) for progress in seen] == [(2, 5), (4, 5), (5, 5)]
    frames = [frame for batch in batches for frame in batch.results]
    assert [frame.index for frame in frames] == [0, 1, 2, 70, 4]
    assert [frame.timestamp for frame in frames] == [None, None, 2.5, 3, None]
    assert frames[3].id == "d"
    assert frames[1].description == "shows /b.png"
    assert all(frame.ok for frame in frames)


def test_a_frame_that_failed_is_not_ok(serve: Serve, client: vlmd.Client) -> None:
    def play(talk: Conversation) -> None:
        request = talk.expect("describe_images")
        for line in batch_lines(request):
            line["results"][0] |= {"error": "no such file", "code": "image_not_found"}
            talk.line(**line)
        talk.stall()

    serve(hello_then(play))
    (frame,) = client.describe_all(["/a.png"])
    assert not frame.ok
    assert frame.code == "image_not_found"


def test_relative_paths_are_of_the_callers_folder(
    serve: Serve, client: vlmd.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.chdir(folder)
    batches = client.describe(iter(["a.png", "./b.png"]))
    monkeypatch.chdir("/")
    paths = [frame.image_path for batch in batches for frame in batch.results]
    assert paths == [f"{folder}/a.png", f"{folder}/./b.png"]


def test_options_reach_the_daemon(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    client.describe_all(
        ["/a.png"],
        batch_size=3,
        max_tokens=100,
        max_tokens_per_frame=50,
        mode="interleaved",
        model="m",
        prompt="p",
        schema=schema,
        grammar=False,
        priority="interactive",
    )
    params = server.received[-1]["params"]
    assert params.pop("images") == [{"imagePath": "/a.png", "index": 0}]
    assert params == {
        "batchSize": 3,
        "maxTokens": 100,
        "maxTokensPerFrame": 50,
        "mode": "interleaved",
        "model": "m",
        "prompt": "p",
        "schema": schema,
        "grammar": False,
        "priority": "interactive",
    }


@pytest.mark.parametrize("images", ["a.png", Path("a.png"), vlmd.Image("a.png")])
def test_a_single_image_is_a_type_error(client: vlmd.Client, images: str) -> None:
    with pytest.raises(TypeError, match="pass a list"):
        client.describe(images)


def test_an_unknown_keyword_is_a_type_error(client: vlmd.Client) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        client.describe([], batchsize=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="sockets"):
        vlmd.Client(sockets="x")  # type: ignore[call-arg]


def test_no_images_need_no_daemon(client: vlmd.Client) -> None:
    assert client.describe_all([]) == []


def test_errors_of_the_callers_iterable_reach_the_caller(serve: Serve, client: vlmd.Client) -> None:
    serve()

    def broken() -> Iterator[str]:
        yield "/a.png"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.describe_all(broken())


class Counted:
    """An endless iterable that knows how far it was read."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            self.count += 1
            yield f"/{self.count}.png"

    async def __aiter__(self) -> AsyncIterator[str]:
        for path in self:
            yield path


def test_an_endless_iterable_is_read_a_little_ahead(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    source = Counted()
    ahead = 0
    with client.describe(source) as batches:
        for batch in itertools.islice(batches, 1000):
            assert batch.progress.total is None
            ahead = max(ahead, source.count - batch.progress.current)
    print(f"read ahead at most {ahead} of 4000 frames delivered")
    assert ahead <= 2 * 256
    assert all(len(m["params"]["images"]) <= 256 for m in server.received if m["method"] == "describe_images")


@pytest.mark.anyio
async def test_so_is_an_endless_async_iterable(serve: Serve, folder: Path) -> None:
    serve()
    source = Counted()
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        async for batch in client.describe(aiter(source), batch_size=100):
            assert source.count - batch.progress.current <= 2 * 256
            if batch.batch == 12:
                break
    assert batch.progress.current == 1200


@pytest.mark.parametrize("count", [255, 256, 257, 512, 600])
def test_a_generators_last_batch_is_done_and_its_total_known(serve: Serve, client: vlmd.Client, count: int) -> None:
    serve()
    batches = list(client.describe(f"/{at}.png" for at in range(count)))
    assert [batch.done for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert [batch.batch for batch in batches] == list(range(1, len(batches) + 1))
    assert [frame.index for batch in batches for frame in batch.results] == list(range(count))
    assert batches[-1].progress == vlmd.Progress(current=count, total=count)
    assert batches[0].progress.total in (None, count)


def test_a_live_source_is_described_as_it_comes(
    serve: Serve, client: vlmd.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setattr("vlmd._images.PULL_BUDGET_S", 0.0)
    monkeypatch.setattr("vlmd._images.LIVE_S", 0.0)
    source = Counted()
    with client.describe(source, batch_size=2) as batches:
        for batch in itertools.islice(batches, 5):
            assert source.count == batch.progress.current  # no result waits for a further frame
    sizes = [len(m["params"]["images"]) for m in server.received if m["method"] == "describe_images"]
    assert set(sizes) == {2}


def held(event: threading.Event) -> Callable[[Message], None]:
    return lambda line: None if line["batch"] == 1 else (event.wait(10), None)[1]


def cancelled(server: FakeServer) -> bool:
    asked = [m["id"] for m in server.received if m["method"] == "describe_images"]
    targets = [m["params"]["target"] for m in server.received if m["method"] == "cancel"]
    return bool(asked) and sorted(asked) == sorted(targets)


@pytest.mark.parametrize("how", ["break", "error", "close", "forget"])
def test_to_leave_the_iterator_cancels(serve: Serve, client: vlmd.Client, how: str) -> None:
    go = threading.Event()
    server = serve(obedient(before_batch=held(go)))
    images = [f"/{at}.png" for at in range(1000)]
    if how == "break":
        for _ in client.describe(images):
            break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in client.describe(images):
                raise ZeroDivisionError
    elif how == "close":
        batches = client.describe(images)
        next(batches)
        batches.close()
        assert list(batches) == []
    else:
        batches = client.describe(images)
        next(batches)
        del batches
        gc.collect()
    wait_until(lambda: cancelled(server))
    go.set()
    assert client.ping().state == "ready"
    assert server.connections == 1


def test_another_thread_ends_it_at_once(serve: Serve, client: vlmd.Client) -> None:
    go = threading.Event()
    server = serve(obedient(before_batch=held(go)))
    batches = client.describe([f"/{at}.png" for at in range(1000)])
    got: list[vlmd.Batch] = []
    reader = threading.Thread(target=lambda: got.extend(batches))
    reader.start()
    wait_until(lambda: client._core.current_link() is not None and "describe_images" in server.methods())
    wait_until(lambda: len(got) == 1)
    batches.close()
    reader.join(2)
    assert not reader.is_alive()
    assert len(got) == 1
    wait_until(lambda: cancelled(server))
    go.set()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["break", "cancel", "aclose"])
async def test_to_leave_the_async_iterator_cancels(serve: Serve, folder: Path, how: str) -> None:
    go = threading.Event()
    server = serve(obedient(before_batch=held(go)))
    images = [f"/{at}.png" for at in range(1000)]
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        if how == "break":
            async for _ in client.describe(images):
                break
        elif how == "cancel":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.describe_all, images)
                while "describe_images" not in server.methods():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        else:
            async with client.describe(images) as batches:
                await anext(batches)
        with anyio.fail_after(5):
            while not cancelled(server):
                await anyio.sleep(0.01)
        go.set()
        assert (await client.ping()).state == "ready"


def test_many_threads_share_a_client(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    results: dict[int, list[str]] = {}

    def work(number: int) -> None:
        client.ping()
        frames = client.describe_all([f"/{number}-{at}.png" for at in range(40)])
        results[number] = [frame.image_path for frame in frames]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: [f"/{number}-{at}.png" for at in range(40)] for number in range(8)}
    assert server.connections == 1


@pytest.mark.anyio
async def test_many_tasks_share_a_client(serve: Serve, folder: Path) -> None:
    server = serve()
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(client.describe_all, [f"/{number}-{at}.png" for at in range(40)])
    assert server.connections == 1


def test_to_close_fails_who_waits(serve: Serve, client: vlmd.Client) -> None:
    server = serve(hello_then(Conversation.stall))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client.describe_all(["/a.png"])
        except vlmd.VlmdError as error:
            errors.append(error)

    client.hello()
    thread = threading.Thread(target=work)
    thread.start()
    server.wait_for(lambda: client._core._link is not None and bool(client._core._link._session.pending))
    client.close()
    thread.join(5)
    assert isinstance(errors[0], vlmd.ClosedError)
    with pytest.raises(vlmd.ClosedError):
        client.ping()
    client.close()


def test_a_busy_daemon_is_asked_again_when_it_says(serve: Serve, client: vlmd.Client) -> None:
    def busy_twice(talk: Conversation) -> None:
        for _ in range(2):
            talk.refuse(talk.expect("describe_images"), "busy", retryable=True, data={"retryAfterMs": 10})
        for line in batch_lines(talk.expect("describe_images")):
            talk.line(**line)
        talk.stall()

    serve(hello_then(busy_twice))
    assert len(client.describe_all(["/a.png", "/b.png"])) == 2


def test_a_daemon_that_stays_busy_is_not_asked_without_end(serve: Serve, client: vlmd.Client) -> None:
    def busy(talk: Conversation) -> None:
        for request in talk.lines():
            talk.refuse(request, "busy", retryable=True, data={"retryAfterMs": 100})

    serve(hello_then(busy))
    soon = vlmd.Timeouts(first_byte_s=0.35)
    for ask in (lambda: client.describe_all(["/a.png"], timeouts=soon), client.generate("p", timeouts=soon).text):
        with pytest.raises(vlmd.BusyError):
            ask()


@pytest.mark.parametrize("method", ["describe", "generate"])
def test_a_request_that_no_daemon_takes_ends_no_other(serve: Serve, client: vlmd.Client, method: str) -> None:
    server = serve()
    others = client.describe([f"/{at}.png" for at in range(12)])
    next(others)
    huge = "p" * MAX_FRAME_BYTES
    with pytest.raises(vlmd.InvalidRequestError, match="Send fewer images, or less text") as caught:
        client.describe_all(["/a.png"], prompt=huge) if method == "describe" else client.generate(huge).text()
    assert caught.value.code == "frame_too_large"
    assert len(list(others)) == 2
    assert server.methods() == ["describe_images"]
    assert server.connections == 1
