"""Spreadsheets, mail, calendar and a design canvas."""

from __future__ import annotations

import math
import random

from vlmd_bridge.demo.canvas import ACCENTS, HEIGHT, WIDTH, Canvas, Theme, jitter, pick_accent, pick_theme
from vlmd_bridge.demo.frame import Scene, count_of
from vlmd_bridge.record import Record

_COLUMN = 128
_ROW = 44
_SHEET_TOP = 88


def _sheet(size: tuple[int, int], rng: random.Random, theme: Theme) -> Canvas:
    canvas = Canvas(size, theme.background)
    canvas.box(0, 0, WIDTH, _SHEET_TOP, (16, 124, 65))
    return canvas


def _grid(canvas: Canvas, rng: random.Random, theme: Theme) -> None:
    for x in range(0, WIDTH, _COLUMN):
        canvas.box(x, _SHEET_TOP, x + 5, HEIGHT, theme.muted)
    for y in range(_SHEET_TOP, HEIGHT, _ROW):
        canvas.box(0, y, WIDTH, y + 5, theme.muted)
    for _ in range(rng.randint(40, 70)):
        x, y = rng.randrange(0, WIDTH, _COLUMN), rng.randrange(_SHEET_TOP, HEIGHT - _ROW, _ROW)
        canvas.box(x + 20, y + 16, x + rng.randint(50, 110), y + 32, theme.muted)


def editing_cells(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a sheet with a coloured column, row or block of cells."""
    theme, accent = pick_theme(rng), pick_accent(rng)
    canvas = _sheet(size, rng, theme)
    shape = rng.choice(("column", "row", "block"))
    column, row = rng.randint(1, 6), rng.randint(2, 10)
    x, y = column * _COLUMN, _SHEET_TOP + row * _ROW
    if shape == "column":
        canvas.box(x, _SHEET_TOP, x + _COLUMN, HEIGHT, ACCENTS[accent])
    elif shape == "row":
        canvas.box(0, y, WIDTH, y + 2 * _ROW, ACCENTS[accent])
    else:
        canvas.box(x, y, x + 3 * _COLUMN, y + 5 * _ROW, ACCENTS[accent])
    _grid(canvas, rng, theme)
    record = Record(
        description=f"Editing a {accent} {shape} in a spreadsheet",
        activity="editing",
        apps=("Excel",),
        topics=("spreadsheet",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def studying_chart(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a sheet with a bar, line or pie chart."""
    theme, accent = pick_theme(rng), pick_accent(rng)
    color = ACCENTS[accent]
    canvas = _sheet(size, rng, theme)
    _grid(canvas, rng, theme)
    left, top = rng.randint(220, 420), rng.randint(140, 220)
    canvas.box(left - 10, top - 10, left + 710, top + 510, theme.muted)
    canvas.box(left, top, left + 700, top + 500, theme.background)
    shape = rng.choice(("bar", "line", "pie"))
    if shape == "bar":
        for i in range(5):
            x = left + 60 + i * 124
            canvas.box(x, top + 460 - rng.randint(80, 400), x + 80, top + 460, color)
    elif shape == "line":
        points = [(left + 50 + i * 120, top + rng.uniform(60, 440)) for i in range(6)]
        canvas.line(points, color, 36)
        for x, y in points:
            canvas.disc(x, y, 30, color)
    else:
        start = rng.randint(0, 359)
        canvas.disc(left + 350, top + 250, 210, color)
        canvas.slice(left + 350, top + 250, 210, start, start + rng.randint(50, 110), theme.muted)
    record = Record(
        description=f"Studying a {accent} {shape} chart in a spreadsheet",
        activity="analysis",
        apps=("Excel",),
        topics=("spreadsheet", "chart"),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def reading_mail(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a mailbox with up to four unread messages."""
    theme, accent, unread = pick_theme(rng), pick_accent(rng), rng.randint(0, 4)
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    canvas.box(0, 0, WIDTH, 60, theme.panel)
    canvas.box(0, 60, 470, HEIGHT, theme.panel)
    marked = rng.sample(range(7), unread)
    for slot in range(7):
        y = 80 + slot * 100
        if slot in marked:
            canvas.box(0, y - 6, 470, y + 88, ACCENTS[accent])
        canvas.box(110, y + 6, 110 + rng.randint(140, 300), y + 26, theme.ink)
        canvas.text(rng, 110, y + 40, 440, y + 80, (theme.muted,), pitch=24, height=12)
        canvas.box(0, y + 88, 470, y + 94, theme.muted)
    # The open message's banner shows the accent even when nothing is unread.
    canvas.box(510, 90, 1240, 150, ACCENTS[accent])
    canvas.text(rng, 510, 190, 1240, HEIGHT - rng.randint(40, 300), (theme.muted,), pitch=34)
    record = Record(
        description=f"Reading mail with {count_of(unread, 'unread message')}",
        activity="mail",
        apps=("Mail",),
        topics=("mail",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def planning_week(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a week of five days, each with at most one meeting."""
    theme, accent, meetings = pick_theme(rng), pick_accent(rng), rng.randint(1, 5)
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    canvas.box(0, 0, WIDTH, 90, theme.panel)
    day = WIDTH / 5
    for i in range(1, 5):
        canvas.box(i * day - 4, 0, i * day + 4, HEIGHT, theme.muted)
    for y in range(90, HEIGHT, 118):
        canvas.box(0, y, WIDTH, y + 4, theme.muted)
    for i in range(5):
        canvas.box(i * day + 40, 34, i * day + 40 + rng.randint(60, 140), 58, theme.muted)
    for i in rng.sample(range(5), meetings):
        y = rng.randint(120, 560)
        canvas.box(i * day + 24, y, (i + 1) * day - 24, y + 180, ACCENTS[accent])
    record = Record(
        description=f"Planning a week with {count_of(meetings, 'meeting')}",
        activity="planning",
        apps=("Calendar",),
        topics=("calendar",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def designing(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a canvas with one to four app screens side by side."""
    theme, accent, screens = pick_theme(rng), pick_accent(rng), rng.randint(1, 4)
    dark = theme.name == "dark"
    canvas = Canvas(size, (70, 70, 76) if dark else (200, 200, 206))
    canvas.box(0, 0, WIDTH, 60, theme.strip)
    canvas.box(0, 60, 130, HEIGHT, theme.background)
    canvas.box(WIDTH - 130, 60, WIDTH, HEIGHT, theme.background)
    for i in range(8):
        canvas.box(24, 100 + i * 80, rng.randint(60, 106), 120 + i * 80, theme.muted)
        canvas.box(WIDTH - 106, 100 + i * 80, WIDTH - rng.randint(24, 70), 120 + i * 80, theme.muted)
    top = rng.randint(130, 190)
    for i in range(screens):
        x = 170 + i * 245
        canvas.box(x, top, x + 200, top + 480, (255, 255, 255))
        canvas.box(x, top, x + 200, top + 130, ACCENTS[accent])
        canvas.text(rng, x + 24, top + 170, x + 176, top + 300, ((150, 150, 155),), pitch=34)
        canvas.disc(x + 100, top + 380, 40 + 20 * math.sin(rng.random() * math.pi), (90, 90, 100))
    record = Record(
        description=f"Designing {count_of(screens, 'screen')} on a canvas",
        activity="design",
        apps=("Figma",),
        topics=("design",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)
