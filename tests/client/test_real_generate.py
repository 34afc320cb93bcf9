"""`generate` and `count_tokens` against ``vlmd serve`` itself, with the deterministic fake in place of a model."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import anyio
import msgspec
import pytest

import vlmd
from tests.client.conftest import is_gone, wait_until

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("PIL", "numpy", "psutil"))), reason="the daemon's packages are not installed"
)


class Window(msgspec.Struct):
    title: Annotated[str, msgspec.Meta(max_length=12)]
    kind: Literal["code", "chat"]


class Screen(msgspec.Struct):
    windows: list[Window]
    main: Window
    count: Annotated[int, msgspec.Meta(ge=1, le=9)]


@pytest.fixture
def images(folder: Path) -> list[Path]:
    from PIL import Image

    paths = [folder / f"{at}.png" for at in range(24)]
    for at, path in enumerate(paths):
        Image.new("RGB", (64, 64), (at * 10, 0, 0)).save(path)
    return paths


def own(model: str = "fake", text_model: str | None = None) -> vlmd.Client:
    return vlmd.Client(model, text_model=text_model, python=sys.executable)


def test_text_messages_pictures_and_a_count(images: list[Path]) -> None:
    with own() as client:
        generation = client.generate("Say something.")
        pieces = list(generation)
        assert len(pieces) > 3
        result = generation.finish()
        assert (result.text, result.finish_reason) == ("".join(pieces), "stop")
        assert result.reasoning
        assert result.usage.completion_tokens > 0
        sampled = [client.generate("x", temperature=1.0, seed=seed).text() for seed in (1, 1, 2)]
        assert sampled[0] == sampled[1] != sampled[2]
        chat = [vlmd.Message("system", "Be brief."), vlmd.Message("user", [vlmd.Image(images[0]), "What?"])]
        seen = client.generate(chat).text()
        assert seen.startswith("Picture ")
        assert client.generate([*chat[:1], vlmd.Message("user", [images[1], "What?"])]).text() != seen
        assert client.count_tokens(chat).prompt_tokens > client.count_tokens("What?").prompt_tokens
        with pytest.raises(vlmd.InvalidRequestError, match=r"params.temperature"):
            client.generate("x", temperature=3).text()
        with pytest.raises(vlmd.InvalidRequestError) as caught:
            client.generate("x", images=["/nowhere.png"]).text()
        assert caught.value.code == "image_not_found"


def test_types_for_generate_and_describe(images: list[Path]) -> None:
    with own() as client:
        screen = client.generate("What is on the screen?", schema=Screen).value()
        assert isinstance(screen, Screen)
        assert isinstance(screen.windows[0], Window)
        assert client.generate("Which?", schema=Literal["yes", "no"]).value() in ("yes", "no")
        frames = client.describe_all(images[:5], schema=Screen)
        assert all(frame.ok and isinstance(frame.value, Screen) for frame in frames)
        assert frames[0].record == msgspec.to_builtins(frames[0].value)


def test_several_at_once_beside_a_description(images: list[Path]) -> None:
    with own("fake:step_ms=2") as client:
        alone = {number: client.generate(f"Story {number}.").text() for number in range(6)}
        together: dict[int, str] = {}

        def work(number: int) -> None:
            together[number] = "".join(client.generate(f"Story {number}."))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        assert len(client.describe_all(images)) == 24
        for thread in threads:
            thread.join(20)
        assert together == alone


def test_to_leave_frees_the_daemon() -> None:
    with own("fake:step_ms=20,tokens=400") as client:
        for _ in client.generate("A long story."):
            break
        wait_until(lambda: client.status().queue.jobs == 0)


def test_a_killed_daemon_costs_a_text_that_has_begun() -> None:
    with own("fake:step_ms=20,tokens=400") as client:
        generation = client.generate("A long story.", thinking=False)
        first = next(generation)
        os.kill(client.hello().pid, signal.SIGKILL)
        with pytest.raises(vlmd.ConnectionLostError):
            generation.text()
        assert generation.text_so_far.startswith(first)
        assert client.generate("Short.", thinking=False, max_tokens=3).text()


def test_a_text_model_beside(images: list[Path]) -> None:
    with own("fake", text_model="fake:width=2") as client:
        assert [model.name for model in client.hello().models] == ["fake", "fake:width=2"]
        assert client.generate("Short.").text()
        assert client.generate("What?", images=images[:2]).text().startswith("Picture ")


@pytest.mark.anyio
async def test_the_async_client(images: list[Path]) -> None:
    texts: list[str] = []

    async def work(number: int) -> None:
        texts.append(await asking.generate(f"Story {number}.").text())

    async with vlmd.AsyncClient("fake", python=sys.executable) as asking, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(work, number)
        assert (await asking.generate("Which?", schema=Screen).value()).count >= 1
        assert len(await asking.describe_all(images)) == 24
        pid = (await asking.hello()).pid
    assert len(set(texts)) == 4
    assert is_gone(pid)
