"""`generate` and `count_tokens` of both clients against a scripted server."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import vlmd
from tests.client.conftest import wait_until
from tests.support.fake_server import USAGE, Conversation, FakeServer, Message, generate_lines, hello_then, obedient

Serve = Callable[..., FakeServer]

WORDS = "Grüße, 世界 👩‍👩‍👧 — done"


@pytest.fixture
def client(folder: Path) -> Iterator[vlmd.Client]:
    with vlmd.Client(socket=folder / "s", start=False) as made:
        yield made


def says(text: str, **more: Any) -> Callable[[Conversation], None]:
    """A daemon that answers every prompt with `text`."""

    def play(talk: Conversation) -> None:
        for request in talk.lines():
            if request["method"] == "generate":
                for line in generate_lines(request, text, **more):
                    talk.line(**line)

    return hello_then(play)


def test_iterating_gives_the_text_in_pieces(serve: Serve, client: vlmd.Client) -> None:
    serve(says(WORDS, reasoning="Let me think."))
    generation = client.generate("Say it.")
    pieces = list(generation)
    assert len(pieces) == -(-len(WORDS) // 3)
    assert "".join(pieces) == generation.text() == generation.text_so_far == WORDS
    result = generation.result
    assert result is not None
    assert (result.text, result.reasoning, result.finish_reason) == (WORDS, "Let me think.", "stop")
    assert result.usage.prompt_tokens == USAGE["promptTokens"]
    assert (result.value, result.value_error) == (None, None)
    assert list(generation) == []


def test_deltas_have_the_thinking_too(serve: Serve, client: vlmd.Client) -> None:
    serve(says("Yes.", reasoning="Hm, well."))
    generation = client.generate("Well?")
    deltas = list(generation.deltas())
    assert [bool(delta.reasoning) for delta in deltas] == [True] * 3 + [False] * 2
    assert "".join(delta.text for delta in deltas) == "Yes."
    assert "".join(delta.reasoning for delta in deltas) == generation.reasoning_so_far == "Hm, well."


def test_the_whole_after_a_part(serve: Serve, client: vlmd.Client) -> None:
    serve(says(WORDS))
    generation = client.generate("Say it.")
    assert next(generation) == WORDS[:3]
    assert generation.text_so_far == WORDS[:3]
    assert generation.text() == WORDS


@pytest.mark.anyio
async def test_the_async_client_does_the_same(serve: Serve, folder: Path) -> None:
    serve(says(WORDS, reasoning="So."))
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        generation = client.generate("Say it.")
        assert "".join([text async for text in generation]) == WORDS
        assert await generation.text() == WORDS
        assert generation.result is not None
        deltas = client.generate("Say it.").deltas()
        assert "".join([delta.reasoning + delta.text async for delta in deltas]) == "So." + WORDS
        assert (await client.generate("Say it.").finish()).finish_reason == "stop"
        result: object = await client.generate("Say it.", schema=None).finish()
        assert isinstance(result, vlmd.GenerateResult)


def test_options_reach_the_daemon(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    client.generate("p").text()
    # msgspec leaves out a float's default only where it is the very same object.
    plain = {"prompt": "p", "temperature": 0.0, "topP": 1.0, "repetitionPenalty": 1.0}
    assert plain | server.received[-1]["params"] == plain
    client.generate(
        "p",
        images=["/a.png"],
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        repetition_penalty=1.1,
        seed=3,
        stop="END",
        thinking=False,
        model="m",
        priority="batch",
    ).text()
    assert server.received[-1]["params"] == {
        "prompt": "p",
        "images": [{"imagePath": "/a.png"}],
        "maxTokens": 9,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "repetitionPenalty": 1.1,
        "seed": 3,
        "stop": ["END"],
        "thinking": False,
        "model": "m",
        "priority": "batch",
    }
    client.generate("p", regex="a+", stop=None).text()
    assert server.received[-1]["params"]["regex"] == "a+"


def test_messages_reach_the_daemon(
    serve: Serve, client: vlmd.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.chdir(folder)
    client.generate(
        [
            vlmd.Message("system", "Be brief."),
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "imagePath": "b.png"}]},
            {"role": "assistant", "content": "Hm."},
            vlmd.Message("user", [vlmd.Text("c"), vlmd.Image("d.png"), "e", Path("f.png")]),
        ]
    ).text()
    assert server.received[-1]["params"]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "image", "imagePath": f"{folder}/b.png"}],
        },
        {"role": "assistant", "content": "Hm."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "c"},
                {"type": "image", "imagePath": f"{folder}/d.png"},
                {"type": "text", "text": "e"},
                {"type": "image", "imagePath": f"{folder}/f.png"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("prompt", "error", "match"),
    [
        (3, TypeError, "str or a list of messages"),
        (vlmd.Message("user", "x"), TypeError, "list of messages"),
        (["x"], TypeError, r"messages\[0\] is a Message"),
        ([{"role": "user", "content": 3}], TypeError, r"messages\[0\].content"),
        ([{"role": "user", "content": [3]}], TypeError, r"messages\[0\].content\[0\]"),
        ([{"role": "tool", "content": "x"}], vlmd.InvalidRequestError, r"messages\[0\]: .*'tool'.*`role`"),
        ([{"role": "user", "content": [{"type": "video"}]}], vlmd.InvalidRequestError, r"content\[0\].*'video'"),
    ],
)
def test_what_is_no_prompt_fails_before_it_is_sent(
    client: vlmd.Client, prompt: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        client.generate(prompt)


def test_a_single_image_is_a_type_error(client: vlmd.Client) -> None:
    with pytest.raises(TypeError, match="pass a list"):
        client.generate("p", images="a.png")


def test_the_model_of_a_shared_daemon_is_named(serve: Serve, folder: Path) -> None:
    server = serve()
    with vlmd.Client("sees", text_model="reads", socket=folder / "s", start=False) as client:
        client.generate("p").text()
        client.generate("p", images=["/a.png"]).text()
        client.generate([vlmd.Message("user", [vlmd.Image("/a.png"), "p"])]).text()
        client.generate("p", model="other").text()
    assert [m["params"]["model"] for m in server.received[1:]] == ["reads", "sees", "sees", "other"]


def test_count_tokens(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    count = client.count_tokens("p", images=["/a.png"], max_tokens=50)
    assert (count.prompt_tokens, count.context_tokens, count.max_tokens, count.fits) == (7, 100, 50, True)
    assert server.received[-1]["params"] == {"prompt": "p", "images": [{"imagePath": "/a.png"}], "maxTokens": 50}


@pytest.mark.anyio
async def test_the_async_client_counts(serve: Serve, folder: Path) -> None:
    serve()
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        assert (await client.count_tokens([vlmd.Message("user", "x")])).fits


# --- leaving --------------------------------------------------------------------------------------------------


def held(event: threading.Event) -> Callable[[Message], None]:
    sent: list[Message] = []

    def before(line: Message) -> None:
        sent.append(line)
        if len(sent) > 1:
            event.wait(10)

    return before


def cancelled(server: FakeServer) -> bool:
    asked = [m["id"] for m in server.received if m["method"] == "generate"]
    return bool(asked) and asked == [m["params"]["target"] for m in server.received if m["method"] == "cancel"]


@pytest.mark.parametrize("how", ["break", "error", "close", "with", "forget", "deltas"])
def test_to_leave_the_iterator_cancels(serve: Serve, client: vlmd.Client, how: str) -> None:
    go = threading.Event()
    server = serve(obedient(before_delta=held(go)))
    if how == "break":
        for _ in client.generate("p"):
            break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in client.generate("p"):
                raise ZeroDivisionError
    elif how == "close":
        generation = client.generate("p")
        next(generation)
        generation.close()
        assert list(generation) == []
        assert generation.text_so_far == "Ech"
        with pytest.raises(vlmd.CancelledError_):
            generation.text()
    elif how == "with":
        with client.generate("p") as generation:
            next(generation)
    elif how == "forget":
        generation = client.generate("p")
        next(generation)
        del generation
        gc.collect()
    else:
        for _ in client.generate("p").deltas():
            break
    wait_until(lambda: cancelled(server))
    go.set()
    assert client.ping().state == "ready"
    assert server.connections == 1


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["break", "cancel", "aclose", "deltas"])
async def test_to_leave_the_async_iterator_cancels(serve: Serve, folder: Path, how: str) -> None:
    go = threading.Event()
    server = serve(obedient(before_delta=held(go)))
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        if how == "break":
            async for _ in client.generate("p"):
                break
        elif how == "cancel":
            with anyio.move_on_after(0.1) as scope:
                await client.generate("p").text()
            assert scope.cancelled_caught
        elif how == "aclose":
            async with client.generate("p") as generation:
                await anext(generation)
        else:
            async for _ in client.generate("p").deltas():
                break
        with anyio.fail_after(5):
            while not cancelled(server):
                await anyio.sleep(0.01)
        go.set()
        assert (await client.ping()).state == "ready"


def test_another_thread_ends_it_at_once(serve: Serve, client: vlmd.Client) -> None:
    go = threading.Event()
    server = serve(obedient(before_delta=held(go)))
    generation = client.generate("p")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.extend(generation))
    reader.start()
    wait_until(lambda: generation.text_so_far == "Ech")
    generation.close()
    reader.join(2)
    assert not reader.is_alive()
    assert got == ["Ech"]
    with pytest.raises(vlmd.CancelledError_):
        generation.text()
    wait_until(lambda: cancelled(server))
    go.set()


@pytest.mark.anyio
async def test_another_task_ends_it_at_once(serve: Serve, folder: Path) -> None:
    go = threading.Event()
    server = serve(obedient(before_delta=held(go)))
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client, anyio.create_task_group() as tasks:
        generation = client.generate("p")
        errors: list[BaseException] = []

        async def wait() -> None:
            try:
                await generation.text()
            except vlmd.VlmdError as error:
                errors.append(error)

        tasks.start_soon(wait)
        with anyio.fail_after(5):
            while not generation.text_so_far:
                await anyio.sleep(0.01)
            await generation.aclose()
            while not errors:
                await anyio.sleep(0.01)
        assert isinstance(errors[0], vlmd.CancelledError_)
        wait_until(lambda: cancelled(server))
        go.set()


def test_a_generation_that_nobody_reads_is_never_asked(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    client.generate("p").close()
    assert server.connections == 0


def test_a_generation_that_ended_is_not_cancelled(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    with client.generate("p") as generation:
        generation.text()
    del generation
    gc.collect()
    client.ping()
    assert server.methods() == ["generate", "ping"]


# --- several at once ------------------------------------------------------------------------------------------


def test_many_threads_generate_beside_a_description(serve: Serve, client: vlmd.Client) -> None:
    server = serve()
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = "".join(client.generate(f"{number} {WORDS}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    assert len(client.describe_all([f"/{at}.png" for at in range(100)])) == 100
    for thread in threads:
        thread.join(20)
    assert texts == {number: f"Echo: {number} {WORDS}" for number in range(8)}
    assert server.connections == 1


@pytest.mark.anyio
async def test_many_tasks_generate_beside_a_description(serve: Serve, folder: Path) -> None:
    server = serve()
    texts: dict[int, str] = {}

    async def work(number: int) -> None:
        texts[number] = await asking.generate(f"{number}").text()

    async with vlmd.AsyncClient(socket=folder / "s", start=False) as asking, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(work, number)
        assert len(await asking.describe_all([f"/{at}.png" for at in range(100)])) == 100
    assert texts == {number: f"Echo: {number}" for number in range(8)}
    assert server.connections == 1


def test_a_slow_reader_holds_up_nobody(serve: Serve, client: vlmd.Client) -> None:
    serve()
    slow = client.generate("x" * 300_000)
    next(slow)
    assert client.generate("quick").text() == "Echo: quick"
    assert len(client.describe_all(["/a.png"])) == 1
    assert slow.text() == "Echo: " + "x" * 300_000


# --- a daemon that breaks its word ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"text": "Echo: q"}, "not what its deltas make"),
        ({"text": "Echo: p "}, "not what its deltas make"),
        ({"text": None}, "no result, batch, text or error"),
        ({"usage": None}, "no result, batch, text or error"),
        ({"finishReason": None}, "no result, batch, text or error"),
        ({"text": None, "result": {}}, "has no text"),
        ({"text": None, "results": []}, "with frames"),
    ],
)
def test_a_wrong_end_is_a_violation(serve: Serve, client: vlmd.Client, changes: Message, match: str) -> None:
    def play(talk: Conversation) -> None:
        *deltas, end = generate_lines(talk.expect("generate"))
        for line in deltas:
            talk.line(**line)
        talk.line(**end | changes)
        talk.stall()

    serve(hello_then(play))
    generation = client.generate("p")
    with pytest.raises(vlmd.ProtocolError, match=match):
        generation.text()
    assert generation.text_so_far == "Echo: p"
    assert generation.result is None


def test_a_wrong_count_is_a_violation(serve: Serve, client: vlmd.Client) -> None:
    def play(talk: Conversation) -> None:
        talk.answer(talk.expect("count_tokens"), fits=True)
        talk.stall()

    serve(hello_then(play))
    with pytest.raises(vlmd.ProtocolError, match="another form"):
        client.count_tokens("p")


def test_a_refusal_keeps_what_came(serve: Serve, client: vlmd.Client) -> None:
    def play(talk: Conversation) -> None:
        request = talk.expect("generate")
        talk.line(id=request["id"], delta="half")
        talk.refuse(request, "worker_crashed", "The engine ended.", retryable=True)
        talk.stall()

    serve(hello_then(play))
    generation = client.generate("p")
    with pytest.raises(vlmd.InternalError) as caught:
        list(generation)
    assert caught.value.code == "worker_crashed"
    assert caught.value.retryable
    assert generation.text_so_far == "half"
    with pytest.raises(vlmd.InternalError):  # not half of a text as if it were the whole
        generation.text()


def test_a_busy_daemon_is_asked_again_when_it_says(serve: Serve, client: vlmd.Client) -> None:
    def busy_twice(talk: Conversation) -> None:
        for _ in range(2):
            talk.refuse(talk.expect("generate"), "busy", retryable=True, data={"retryAfterMs": 10})
        for line in generate_lines(talk.expect("generate")):
            talk.line(**line)
        talk.stall()

    serve(hello_then(busy_twice))
    assert client.generate("p").text() == "Echo: p"
