"""What the synthetic recording says of its frames is what their pixels say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vlmd_bridge.demo.canvas import HEIGHT, WIDTH
from vlmd_bridge.demo.desktop import Pixels
from vlmd_bridge.demo.screencast import (
    DEFAULT_FRAMES,
    POINTER_SIZE,
    TRUTH_FILE,
    FrameTruth,
    ScreencastFrame,
    iter_screencast,
    write_screencast,
)

_SMALL_CHANGE_PIXELS = WIDTH * HEIGHT // 1000


@pytest.fixture(scope="module")
def five_minutes() -> list[ScreencastFrame]:
    """The first five minutes of the default recording: frames alike share their array."""
    return list(iter_screencast(count=300))


def test_kinds_and_counts_are_those_of_the_pixels() -> None:
    kinds = dict.fromkeys(("same", "pointer", "changed"), 0)
    small = 0
    for before, frame in pairwise(iter_screencast()):
        kind, count = "same", 0
        if before.pixels is not frame.pixels:
            different = before.pixels != frame.pixels
            count = int((different[..., 0] | different[..., 1] | different[..., 2]).sum())
            for tip in (before.truth.pointer, frame.truth.pointer):
                _blank(different, tip)
            kind = "changed" if different.any() else "pointer" if count else "same"
        assert (kind, count) == (frame.truth.kind, frame.truth.changed_pixels), frame.truth
        kinds[kind] += 1
        small += kind == "changed" and count < _SMALL_CHANGE_PIXELS
    print(f"{kinds}, {small} changes under 0.1 % of the pixels")
    unchanged = kinds["same"] + kinds["pointer"]
    assert 0.8 <= unchanged / DEFAULT_FRAMES <= 0.9
    assert 0.03 <= kinds["pointer"] / unchanged <= 0.08
    assert small >= 200


def test_frames_of_one_screen_are_equal_but_for_the_pointer(five_minutes: list[ScreencastFrame]) -> None:
    returned = 0
    for frame in five_minutes:
        first = five_minutes[frame.truth.first]
        assert first.truth.screen == frame.truth.screen
        assert first.truth.first == first.truth.index
        assert first.truth.record == frame.truth.record
        assert not (_without_pointers(frame, first) != _without_pointers(first, frame)).any()
        returned += frame.truth.kind == "changed" and frame.truth.first < frame.truth.index
    assert returned, "no screen came back"


def test_other_screens_differ_by_more_than_the_pointer(five_minutes: list[ScreencastFrame]) -> None:
    screens = [frame for frame in five_minutes if frame.truth.first == frame.truth.index]
    assert len(screens) > 20
    for i, screen in enumerate(screens):
        for other in screens[:i]:
            assert (_without_pointers(screen, other) != _without_pointers(other, screen)).any()


def test_screens_are_numbered_as_they_come(five_minutes: list[ScreencastFrame]) -> None:
    firsts = [frame.truth.screen for frame in five_minutes if frame.truth.first == frame.truth.index]
    assert firsts == list(range(len(firsts)))


def test_a_seed_draws_the_same_recording() -> None:
    once, again = list(iter_screencast(7, 80)), list(iter_screencast(7, 80))
    assert [frame.truth for frame in once] == [frame.truth for frame in again]
    assert all((a.pixels == b.pixels).all() for a, b in zip(once, again, strict=True))
    assert [frame.truth for frame in iter_screencast(8, 80)] != [frame.truth for frame in once]


def test_png_files_hold_the_pixels_and_repeat_their_bytes(tmp_path: Path) -> None:
    written = write_screencast(tmp_path, 7, 60)
    for (path, truth), frame in zip(written, iter_screencast(7, 60), strict=True):
        assert (np.asarray(Image.open(path)) == frame.pixels).all()
        assert truth == frame.truth
    for (before, _), (path, truth) in pairwise(written):
        assert (before.read_bytes() == path.read_bytes()) == (truth.kind == "same")
    lines = (tmp_path / TRUTH_FILE).read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=FrameTruth) for line in lines] == [truth for _, truth in written]


def test_jpeg_files_have_noise_on_unchanged_frames(tmp_path: Path) -> None:
    written = write_screencast(tmp_path, 7, 20, codec="jpeg")
    pairs = [(before, path) for (before, _), (path, truth) in pairwise(written) if truth.kind == "same"]
    noisy = [pair for pair in pairs if pair[0].read_bytes() != pair[1].read_bytes()]
    assert len(noisy) > len(pairs) / 3
    for before, path in noisy:
        difference = np.asarray(Image.open(before)).astype(int) - np.asarray(Image.open(path))
        assert 0 < np.abs(difference).mean() < 2


def _without_pointers(frame: ScreencastFrame, other: ScreencastFrame) -> Pixels:
    pixels = frame.pixels.copy()
    for tip in (frame.truth.pointer, other.truth.pointer):
        _blank(pixels, tip)
    return pixels


def _blank(pixels: Pixels | NDArray[np.bool_], tip: tuple[int, int]) -> None:
    x, y = tip
    pixels[y : y + POINTER_SIZE[1], x : x + POINTER_SIZE[0]] = 0
