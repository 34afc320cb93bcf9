"""A desktop that somebody works at: windows of the demo's screens with typed letters, scrolled pages and a clock."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from vlmd_bridge.demo.canvas import HEIGHT, WIDTH, Color
from vlmd_bridge.demo.frames import draw_frame
from vlmd_bridge.record import Record

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Action = Literal["type", "scroll", "switch"]

# Where letters go on the screens that somebody types at: plain background is put there first. A terminal's box fits the
# narrowest of its panes.
_TYPED: MappingProxyType[str, Box] = MappingProxyType(
    {
        "editor": (280, 96, 1220, 300),
        "editor-panel": (280, 96, 1220, 300),
        "terminal-log": (40, 90, 380, 300),
    }
)

# What moves when somebody scrolls: parts without what the record counts.
_SCROLLED: MappingProxyType[str, Box] = MappingProxyType(
    {
        "browser-docs": (300, 236, 1240, 400),
        "browser-search": (80, 230, 1000, 790),
        "terminal-pass": (0, 64, WIDTH, HEIGHT),
    }
)
_STILL = ("mail", "chat", "slides", "browser-diff", "sheet-chart")

# Open at once; the ones that are typed at come up most.
_KINDS_BY_ACTION: MappingProxyType[Action, Sequence[str]] = MappingProxyType(
    {"type": tuple(_TYPED), "scroll": tuple(_SCROLLED), "switch": (*_TYPED, *_SCROLLED, *_STILL)}
)

# Of the switches, those that open a new window in place of the last one of its kind.
_NEW_WINDOW_SHARE = 0.4

# A step of the wheel.
_SCROLL_STEP = 40

# Letters of 6 x 11 pixels: a full stop is four of them. Half of the windows have letters of twice that, as dense
# screens do.
_FONT = ImageFont.load_default_imagefont()
_FONT_SIZES = (1, 2)
_LETTER = (6, 11)
_LETTERS = string.ascii_letters + string.digits + string.punctuation

_CLOCK_BOX = (1204, 2, 1272, 26)
_CLOCK_FONT_SIZE = 2
_CLOCK_START_MINUTE = 9 * 60 + 12


@dataclass(kw_only=True, slots=True)
class Window:
    """One window: what it showed when it was opened, and what was done to it since."""

    kind: str
    record: Record
    base: Pixels
    font_size: int
    lines: list[str] = field(default_factory=lambda: [""])
    scroll_steps: int = 0

    @property
    def typed_box(self) -> Box | None:
        """Where letters go, if anywhere."""
        return _TYPED.get(self.kind)

    def type(self, rng: random.Random, letters: int) -> None:
        """Add `letters` letters at the caret; a full line begins another, a full box begins again."""
        left, top, right, bottom = _TYPED[self.kind]
        width, height = (side * self.font_size for side in _LETTER)
        for _ in range(letters):
            if (len(self.lines[-1]) + 2) * width > right - left:
                self.lines.append("")
            if (len(self.lines) + 1) * (height + 4) > bottom - top:
                self.lines = [""]
            self.lines[-1] += rng.choice(_LETTERS)

    def delete(self, letters: int) -> None:
        """Take the last letters of the line back."""
        self.lines[-1] = self.lines[-1][:-letters]

    def pixels(self) -> Pixels:
        """Return what the window shows now, height by width by 3."""
        pixels = self.base.copy()
        if self.kind in _TYPED:
            self._draw_typed(pixels)
        if self.kind in _SCROLLED and self.scroll_steps:
            left, top, right, bottom = _SCROLLED[self.kind]
            part = pixels[top:bottom, left:right]
            pixels[top:bottom, left:right] = np.roll(part, -self.scroll_steps * _SCROLL_STEP, axis=0)
        return pixels

    def _draw_typed(self, pixels: Pixels) -> None:
        left, top, right, bottom = _TYPED[self.kind]
        background = pixels[top - 4, left].copy()
        ink = (230, 230, 230) if int(background.sum()) < 384 else (30, 30, 30)
        pixels[top:bottom, left:right] = background
        width, height = (side * self.font_size for side in _LETTER)
        y = top
        for line in self.lines:
            _draw_text(pixels, left, y, line, ink, self.font_size)
            y += height + 4
        caret_x = left + len(self.lines[-1]) * width + 1
        pixels[y - height - 4 : y - 4, caret_x : caret_x + 2] = ink


class Desktop:
    """Windows, the one in front, and a clock."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._windows = {kind: self._open(kind) for kind in _KINDS_BY_ACTION["switch"]}
        self.window = self._windows["editor"]
        self.minute = 0

    def can(self, action: Action) -> bool:
        """Whether the window in front is one for `action`."""
        return self.window.kind in _KINDS_BY_ACTION[action]

    def switch(self, action: Action) -> None:
        """Bring another window to the front, one for `action`."""
        kinds = [kind for kind in _KINDS_BY_ACTION[action] if kind != self.window.kind]
        kind = self._rng.choice(kinds)
        if self._rng.random() < _NEW_WINDOW_SHARE:
            self._windows[kind] = self._open(kind)
        self.window = self._windows[kind]

    def pixels(self) -> Pixels:
        """Return the screen without the pointer."""
        pixels = self.window.pixels()
        left, top, right, bottom = _CLOCK_BOX
        pixels[top:bottom, left:right] = 0
        hours, minutes = divmod(_CLOCK_START_MINUTE + self.minute, 60)
        _draw_text(pixels, left + 4, top + 1, f"{hours:02d}:{minutes:02d}", (235, 235, 235), _CLOCK_FONT_SIZE)
        return pixels

    def covered(self) -> list[Box]:
        """Return where small changes happen: what a pointer there would hide."""
        return [_CLOCK_BOX] if self.window.typed_box is None else [_CLOCK_BOX, self.window.typed_box]

    def _open(self, kind: str) -> Window:
        frame = draw_frame(self._rng, kind=kind)
        return Window(
            kind=kind,
            record=frame.record,
            base=np.asarray(frame.image),
            font_size=self._rng.choice(_FONT_SIZES),
        )


def _draw_text(pixels: Pixels, x: int, y: int, text: str, ink: Color, size: int) -> None:
    for letter in text:
        mask = _FONT.getmask(letter, mode="1")
        width, height = mask.size
        inked = np.array(mask, dtype=bool).reshape(height, width).repeat(size, axis=0).repeat(size, axis=1)
        part = pixels[y : y + inked.shape[0], x : x + inked.shape[1]]
        part[inked] = ink
        x += _LETTER[0] * size
