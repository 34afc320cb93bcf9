"""What the synthetic screens are drawn with: a scaled canvas, two themes, and a few shapes.

Everything is given in units of a 1280x800 screen. The demo model sees a frame at 256x160, a fifth of that, so whatever
a record depends on is drawn at least 40 units wide and in strong contrast.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

WIDTH = 1280
HEIGHT = 800

Color = tuple[int, int, int]

# Far apart in hue, so that a resize or a JPEG never turns one into another.
ACCENTS: dict[str, Color] = {
    "blue": (30, 90, 220),
    "red": (205, 30, 40),
    "green": (20, 150, 70),
    "purple": (135, 45, 190),
    "orange": (245, 130, 20),
    "yellow": (245, 210, 40),
}
ERROR: Color = (255, 30, 30)
SUCCESS: Color = (40, 210, 80)
SKIN: tuple[Color, ...] = ((240, 200, 170), (220, 170, 130), (180, 125, 90), (130, 85, 60))
CODE: tuple[Color, ...] = ((110, 160, 220), (200, 150, 110), (130, 180, 130), (150, 150, 150), (170, 130, 190))


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours of a dark or a light screen."""

    name: str
    background: Color
    panel: Color
    strip: Color
    tab: Color
    muted: Color
    ink: Color


DARK = Theme(
    name="dark",
    background=(26, 26, 30),
    panel=(52, 52, 60),
    strip=(8, 8, 10),
    tab=(205, 205, 215),
    muted=(120, 120, 128),
    ink=(225, 225, 230),
)
LIGHT = Theme(
    name="light",
    background=(252, 252, 252),
    panel=(224, 225, 230),
    strip=(95, 98, 108),
    tab=(255, 255, 255),
    muted=(150, 150, 156),
    ink=(40, 40, 46),
)


def pick_theme(rng: random.Random) -> Theme:
    """Return the dark or the light theme."""
    return rng.choice((DARK, LIGHT))


def pick_accent(rng: random.Random) -> str:
    """Return the name of an accent colour."""
    return rng.choice(tuple(ACCENTS))


def jitter(rng: random.Random, color: Color, amount: int = 8) -> Color:
    """Return `color` with each channel moved by at most `amount`."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in color)
    return red, green, blue


class Canvas:
    """An image drawn in 1280x800 units, whatever its size in pixels."""

    def __init__(self, size: tuple[int, int], background: Color) -> None:
        self.image = Image.new("RGB", size, background)
        self._draw = ImageDraw.Draw(self.image)
        self._scale_x = size[0] / WIDTH
        self._scale_y = size[1] / HEIGHT

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        left, top = round(x0 * self._scale_x), round(y0 * self._scale_y)
        # Pillow's boxes include their last pixel and refuse a negative extent.
        right = max(left, round(x1 * self._scale_x) - 1)
        bottom = max(top, round(y1 * self._scale_y) - 1)
        return left, top, right, bottom

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        """Fill the rectangle from (x0, y0) up to (x1, y1)."""
        self._draw.rectangle(self._box(x0, y0, x1, y1), fill=color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill the circle of `radius` around (x, y)."""
        self._draw.ellipse(self._box(x - radius, y - radius, x + radius, y + radius), fill=color)

    def slice(self, x: float, y: float, radius: float, start_deg: float, end_deg: float, color: Color) -> None:
        """Fill the part of a circle between two angles, clockwise from three o'clock."""
        bounds = self._box(x - radius, y - radius, x + radius, y + radius)
        self._draw.pieslice(bounds, start_deg, end_deg, fill=color)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Fill the polygon through `points`."""
        self._draw.polygon([(x * self._scale_x, y * self._scale_y) for x, y in points], fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        """Draw a line of `width` through `points`."""
        scaled = [(x * self._scale_x, y * self._scale_y) for x, y in points]
        self._draw.line(scaled, fill=color, width=max(1, round(width * self._scale_x)), joint="curve")

    def text(
        self,
        rng: random.Random,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colors: Sequence[Color],
        *,
        pitch: float = 32,
        height: float = 14,
        indents: Sequence[float] = (0,),
    ) -> None:
        """Fill the rectangle with lines of words, as bars of one of `colors`."""
        y = y0
        while y + height <= y1:
            x = x0 + rng.choice(indents)
            stop = x1 - rng.random() * 0.5 * (x1 - x0)
            while x < stop:
                width = rng.uniform(24, 130)
                self.box(x, y, min(x + width, x1), y + height, rng.choice(colors))
                x += width + 14
            y += pitch

    def tabs(self, count: int, theme: Theme, *, width: float, left: float, height: float = 72) -> None:
        """Draw a strip across the top with `count` tabs, each with a dark mark."""
        self.box(0, 0, WIDTH, height, theme.strip)
        for i in range(count):
            x = left + i * (width + 40)
            self.box(x, 12, x + width, height, theme.tab)
            self.box(x + 20, 26, x + 60, height - 14, theme.strip)
