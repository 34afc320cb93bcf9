"""A recording in several requests: each picture is inferred once, whether it comes as a list or live."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import vlmd
from tests.client.conftest import inferred

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("PIL", "numpy", "psutil"))), reason="the daemon's packages are not installed"
)


@pytest.fixture
def draw(folder: Path) -> Callable[[int, int], Path]:
    """Save frame ``at`` of a recording, of which each ``shade`` looks different; no two files are equal."""
    from PIL import Image, PngImagePlugin

    def save(at: int, shade: int) -> Path:
        text = PngImagePlugin.PngInfo()
        text.add_text("at", str(at))
        path = folder / f"{at}.png"
        Image.new("RGB", (64, 64), (shade, shade, shade)).save(path, pnginfo=text)
        return path

    return save


def own() -> vlmd.Client:
    return vlmd.Client("fake", python=sys.executable)


def check(frames: list[vlmd.Frame], shades: list[int]) -> None:
    """Each frame has its own picture's text, and names an earlier frame that shows the same."""
    assert [frame.index for frame in frames] == list(range(len(shades)))
    for frame, shade in zip(frames, shades, strict=True):
        if frame.duplicate_of is not None:
            original = frames[frame.duplicate_of]
            assert original.index < frame.index
            assert original.duplicate_of is None
            assert shades[original.index] == shade
            assert original.description == frame.description


def test_a_list_of_several_requests(draw: Callable[[int, int], Path]) -> None:
    shades = [10] * 1300
    with own() as client:
        frames = client.describe_all([draw(at, shade) for at, shade in enumerate(shades)], dedupe=True)
        count = inferred(client.status())
    check(frames, shades)
    assert count <= 2  # two requests are under way at a time
    print(f"\n1,300 frames that show the same, in 6 requests: {count} inferred")


@pytest.mark.parametrize("kill", [False, True])
def test_a_live_source(draw: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch, *, kill: bool) -> None:
    monkeypatch.setattr("vlmd._images.PULL_BUDGET_S", 0.0)
    monkeypatch.setattr("vlmd._images.LIVE_S", 0.0)
    shades = [10 * (at // 10) for at in range(40)]
    with own() as client:
        frames: list[vlmd.Frame] = []
        before = 0
        for batch in client.describe((draw(at, shade) for at, shade in enumerate(shades)), batch_size=2, dedupe=True):
            frames += batch.results
            if kill and len(frames) == 16:
                before = inferred(client.status())
                os.kill(client.hello().pid, signal.SIGKILL)
        count = before + inferred(client.status())
    check(frames, shades)
    # What a lost daemon knew is inferred once more.
    assert count == (5 if kill else 4)
    print(f"\n40 frames of 4 pictures, two at a time{', daemon killed once' if kill else ''}: {count} inferred")


@pytest.mark.anyio
async def test_a_live_source_of_the_async_client(
    draw: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmd._images.PULL_BUDGET_S", 0.0)
    monkeypatch.setattr("vlmd._images.LIVE_S", 0.0)
    shades = [10 * (at // 10) for at in range(20)]

    async def screen() -> AsyncIterator[Path]:
        for at, shade in enumerate(shades):
            yield draw(at, shade)

    async with vlmd.AsyncClient("fake", python=sys.executable) as client:
        frames = [
            frame async for batch in client.describe(screen(), batch_size=1, dedupe=True) for frame in batch.results
        ]
        assert inferred(await client.status()) == 2
    check(frames, shades)


def test_equal_files_of_a_live_source_need_not_ask(
    draw: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmd._images.PULL_BUDGET_S", 0.0)
    monkeypatch.setattr("vlmd._images.LIVE_S", 0.0)
    path = draw(0, 10)
    with own() as client:
        frames = [frame for batch in client.describe((path for _ in range(9)), batch_size=1) for frame in batch.results]
        assert inferred(client.status()) == 1
        assert [frame.duplicate_of for frame in frames] == [None] * 9
        list(client.describe((path for _ in range(3)), batch_size=1, dedupe=False))
        assert inferred(client.status()) == 4
