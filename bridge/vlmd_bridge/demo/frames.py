"""Synthetic screenshots with their ground truth: what the demo model was trained on and what `vlmd demo` shows it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from types import MappingProxyType

from vlmd_bridge.demo.canvas import HEIGHT, WIDTH, Canvas
from vlmd_bridge.demo.frame import Frame, Scene, plain_answers
from vlmd_bridge.demo.screens import browser, coding, meeting, office

DrawScreen = Callable[[tuple[int, int], random.Random], tuple[Canvas, Scene]]

# Every screen by its name.
KINDS: MappingProxyType[str, DrawScreen] = MappingProxyType(
    {
        "editor": coding.writing_code,
        "editor-errors": coding.fixing_errors,
        "editor-panel": coding.running_code,
        "terminal-pass": coding.passing_tests,
        "terminal-fail": coding.failing_tests,
        "terminal-log": coding.reading_log,
        "browser-docs": browser.reading_documentation,
        "browser-search": browser.searching,
        "browser-diff": browser.reviewing_code,
        "browser-video": browser.watching_video,
        "sheet-cells": office.editing_cells,
        "sheet-chart": office.studying_chart,
        "mail": office.reading_mail,
        "calendar": office.planning_week,
        "design": office.designing,
        "chat": meeting.chatting,
        "call": meeting.calling,
        "slides": meeting.presenting,
    }
)


def draw_frame(rng: random.Random, size: tuple[int, int] = (WIDTH, HEIGHT), *, kind: str | None = None) -> Frame:
    """Draw one screen.

    Args:
        rng: Decides everything about the screen; the same state draws the same frame.
        size: Width and height in pixels; drawn for an aspect ratio of 8:5.
        kind: One of `KINDS`, or None for any.

    Raises:
        KeyError: `kind` is not one of `KINDS`.
    """
    name = rng.choice(tuple(KINDS)) if kind is None else kind
    canvas, scene = KINDS[name](size, rng)
    return Frame(image=canvas.image, kind=name, record=scene.record, answers=plain_answers(scene))


def iter_recording(seed: int, count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Iterator[Frame]:
    """Yield the frames of `recording` one at a time (3 MB each at 1280x800)."""
    seen: set[bytes] = set()
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    while len(seen) < count:
        frame = draw_frame(rng, size)
        digest = hashlib.blake2b(frame.image.tobytes(), digest_size=16).digest()
        # Equal pictures would let a cache answer where a model should.
        if digest not in seen:
            seen.add(digest)
            yield frame


def recording(seed: int, count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Frame]:
    """Return a synthetic recording: `count` frames, no two alike, the same for the same seed and size."""
    return list(iter_recording(seed, count, size))
