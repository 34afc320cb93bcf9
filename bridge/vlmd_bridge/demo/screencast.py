"""A synthetic screen recording at one frame a second, with what is true of every frame.

Somebody types, scrolls, switches windows and moves the pointer; in between, nothing changes. What a frame *says* is all
of its pixels but the pointer's: two frames show the same screen where they are equal with the pointer taken away. The
truth knows nothing of how frames could be compared. The caret stays where the typing ended and does not blink.

Of the default half hour 82 % of the frames are unchanged against the frame before, and 5 % of these move the pointer;
277 of 315 changes are under 0.1 % of the pixels, the smallest, a digit of the clock, 12 pixels
(``tests/unit/test_demo_screencast.py`` counts them).
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from vlmd_bridge.demo.canvas import HEIGHT, WIDTH
from vlmd_bridge.demo.desktop import Action, Desktop, Pixels
from vlmd_bridge.record import Record

DEFAULT_SEED = 5
DEFAULT_FRAMES = 1800  # half an hour

_FRAMES_PER_MINUTE = 60

# How long somebody reads or thinks, in frames, and how long what follows takes.
_PAUSE = (20, 55)
_TYPING = (8, 14)
_SCROLLING = (2, 5)

# What follows a pause: mostly typing, so that small changes outnumber large ones.
_ACTIONS: tuple[Action, ...] = ("type", "type", "type", "type", "scroll", "switch")

# Of the frames of a pause. Enough to be measured, few enough that describing them again costs little.
_POINTER_SHARE = 0.055

# Of the frames of typing: those that take letters back, and those in which no key was hit.
_DELETE_SHARE = 0.1
_HESITATE_SHARE = 0.05

# Letters in a second.
_MOST_LETTERS = 4

_POINTER_OUTLINE = ((0, 0), (0, 17), (4, 13), (7, 19), (10, 18), (7, 12), (12, 12))
POINTER_SIZE = (13, 20)

# What a recorder's codec may choose from one frame to the next: noise on unchanged frames.
_JPEG_QUALITIES = (85, 90, 95)
_PNG_LEVEL = 1  # writing fast counts more than the size

TRUTH_FILE = "truth.jsonl"

Event = Literal["rest", "pointer", "type", "scroll", "switch"]
Kind = Literal["same", "pointer", "changed"]
Codec = Literal["png", "jpeg"]


class FrameTruth(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one frame.

    Attributes:
        index: Its position, which is also its time in seconds.
        kind: Against the frame before: ``same`` pixels, only the ``pointer`` moved, or ``changed`` content. The first
            frame is changed.
        screen: The number of the screen it shows, in order of appearance: frames with equal numbers say the same.
        first: The earliest frame that shows this screen.
        changed_pixels: Pixels that differ from the frame before, the pointer's among them; all, for the first frame.
        pointer: Where the pointer's tip is, x and y.
        record: What a model should say of it.
    """

    index: int
    kind: Kind
    screen: int
    first: int
    changed_pixels: int
    pointer: tuple[int, int]
    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreencastFrame:
    """A picture, height by width by 3, with its truth. A frame like the one before has the same array."""

    pixels: Pixels
    truth: FrameTruth


def iter_screencast(seed: int = DEFAULT_SEED, count: int = DEFAULT_FRAMES) -> Iterator[ScreencastFrame]:
    """Yield the first `count` frames of the recording that `seed` decides."""
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    desktop = Desktop(rng)
    pointer = _place_pointer(rng, desktop)
    events = _events(rng, desktop)
    first_shown: dict[bytes, tuple[int, int]] = {}
    said, pixels = b"", np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index in range(count):
        event = next(events) if index else "switch"
        desktop.minute = index // _FRAMES_PER_MINUTE
        ticked = index % _FRAMES_PER_MINUTE == 0
        if event in ("pointer", "scroll", "switch"):
            pointer = _place_pointer(rng, desktop)
        kind: Kind = "same"
        changed_pixels = 0
        if event != "rest" or ticked:
            before, said_before = pixels, said
            screen = desktop.pixels()
            said = hashlib.blake2b(screen.tobytes(), digest_size=16).digest()
            pixels = _with_pointer(screen, pointer)
            changed_pixels = count_changed(pixels, before) if index else WIDTH * HEIGHT
            # Deleting nothing and typing nothing leave all as it was.
            kind = "changed" if said != said_before else "pointer" if changed_pixels else "same"
            pixels = pixels if changed_pixels else before
        number, first = first_shown.setdefault(said, (len(first_shown), index))
        truth = FrameTruth(
            index=index,
            kind=kind,
            screen=number,
            first=first,
            changed_pixels=changed_pixels,
            pointer=pointer,
            record=desktop.window.record,
        )
        yield ScreencastFrame(pixels=pixels, truth=truth)


def write_screencast(
    folder: Path, seed: int = DEFAULT_SEED, count: int = DEFAULT_FRAMES, *, codec: Codec = "png"
) -> list[tuple[Path, FrameTruth]]:
    """Write the frames to `folder`, which exists, and the truth beside them to `TRUTH_FILE`; return both.

    PNG is lossless, and frames with the same pixels have the same bytes. JPEG's quality changes from frame to frame, so
    that hardly a frame has the pixels of another.
    """
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    written = []
    encoded, last = b"", None
    for frame in iter_screencast(seed, count):
        if codec == "jpeg":
            encoded = _encode(frame.pixels, "jpeg", quality=rng.choice(_JPEG_QUALITIES))
        elif frame.pixels is not last:
            encoded = _encode(frame.pixels, "png", compress_level=_PNG_LEVEL)
        last = frame.pixels
        path = folder / f"frame-{frame.truth.index:05d}.{'jpg' if codec == 'jpeg' else 'png'}"
        path.write_bytes(encoded)
        written.append((path, frame.truth))
    (folder / TRUTH_FILE).write_bytes(b"".join(msgspec.json.encode(truth) + b"\n" for _, truth in written))
    return written


def count_changed(pixels: Pixels, before: Pixels) -> int:
    """Return how many pixels differ."""
    different = pixels != before
    # Joined by channel: NumPy's `any` over three values is ten times slower.
    return int(np.count_nonzero(different[..., 0] | different[..., 1] | different[..., 2]))


def _events(rng: random.Random, desktop: Desktop) -> Iterator[Event]:
    """Do what somebody does, a frame at a time, and yield what it was."""
    while True:
        for _ in range(rng.randint(*_PAUSE)):
            yield "pointer" if rng.random() < _POINTER_SHARE else "rest"
        action = rng.choice(_ACTIONS)
        if action == "switch" or not desktop.can(action):
            desktop.switch(action)
            yield "switch"
        if action == "type":
            for _ in range(rng.randint(*_TYPING)):
                _type(rng, desktop)
                yield "type"
        elif action == "scroll":
            for _ in range(rng.randint(*_SCROLLING)):
                desktop.window.scroll_steps += rng.choice((1, 1, 1, 2, 3, -1))
                yield "scroll"


def _type(rng: random.Random, desktop: Desktop) -> None:
    choice = rng.random()
    letters = rng.randint(1, _MOST_LETTERS)
    if choice < _DELETE_SHARE:
        desktop.window.delete(letters)
    elif choice > _DELETE_SHARE + _HESITATE_SHARE:
        desktop.window.type(rng, letters)


def _place_pointer(rng: random.Random, desktop: Desktop) -> tuple[int, int]:
    """Return a place where the pointer hides nothing that changes by a little."""
    width, height = POINTER_SIZE
    while True:
        x, y = rng.randrange(WIDTH - width), rng.randrange(HEIGHT - height)
        if all(
            x >= right or x + width <= left or y >= bottom or y + height <= top
            for left, top, right, bottom in desktop.covered()
        ):
            return x, y


def _with_pointer(screen: Pixels, tip: tuple[int, int]) -> Pixels:
    image = Image.fromarray(screen)
    outline = [(tip[0] + x, tip[1] + y) for x, y in _POINTER_OUTLINE]
    ImageDraw.Draw(image).polygon(outline, fill=(0, 0, 0), outline=(255, 255, 255))
    return np.asarray(image)


def _encode(pixels: Pixels, codec: Codec, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, codec, **options)
    return stream.getvalue()
