"""Editors and terminals."""

from __future__ import annotations

import random

from vlmd_bridge.demo.canvas import (
    ACCENTS,
    CODE,
    DARK,
    ERROR,
    HEIGHT,
    LIGHT,
    SUCCESS,
    WIDTH,
    Canvas,
    Color,
    Theme,
    jitter,
    pick_accent,
    pick_theme,
)
from vlmd_bridge.demo.frame import Scene, count_of
from vlmd_bridge.record import Record

_STATUS_TOP = HEIGHT - 48
_CODE_INDENTS = (0, 40, 80, 120)


def _editor(size: tuple[int, int], rng: random.Random, theme: Theme, accent: str, files: int) -> Canvas:
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    sidebar = rng.randint(190, 240)
    canvas.box(0, 72, sidebar, HEIGHT, theme.panel)
    canvas.text(rng, 24, 110, sidebar - 20, _STATUS_TOP - 20, (theme.muted,), pitch=40)
    canvas.tabs(files, theme, width=180, left=260)
    canvas.box(0, _STATUS_TOP, WIDTH, HEIGHT, ACCENTS[accent])
    return canvas


def writing_code(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw an editor with one to four files open."""
    theme, accent, files = pick_theme(rng), pick_accent(rng), rng.randint(1, 4)
    canvas = _editor(size, rng, theme, accent, files)
    canvas.text(rng, 280, 104, 1220, _STATUS_TOP - rng.randint(20, 200), CODE, indents=_CODE_INDENTS)
    record = Record(
        description=f"Writing code in a {theme.name} editor with {count_of(files, 'file')} open",
        activity="coding",
        apps=("VS Code",),
        topics=("source code",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def fixing_errors(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw an editor with one to four lines marked as errors."""
    theme, accent, errors = pick_theme(rng), pick_accent(rng), rng.randint(1, 4)
    canvas = _editor(size, rng, theme, accent, rng.randint(1, 4))
    canvas.text(rng, 280, 104, 1220, _STATUS_TOP - 20, CODE, indents=_CODE_INDENTS)
    # Slots are 104 units apart, so that two marks never touch.
    for slot in rng.sample(range(6), errors):
        y = 108 + slot * 104 + rng.randint(0, 16)
        canvas.box(260, y, 1260, y + 72, ERROR)
    record = Record(
        description=f"Fixing {count_of(errors, 'error')} in a {theme.name} editor",
        activity="debugging",
        apps=("VS Code",),
        topics=("source code", "errors"),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def running_code(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw an editor above a terminal panel."""
    theme, accent = pick_theme(rng), pick_accent(rng)
    canvas = _editor(size, rng, theme, accent, rng.randint(1, 4))
    top = rng.randint(400, 500)
    canvas.text(rng, 280, 104, 1220, top - 30, CODE, indents=_CODE_INDENTS)
    canvas.box(240, top, WIDTH, _STATUS_TOP, (0, 0, 0))
    canvas.box(240, top, WIDTH, top + 24, (235, 235, 235))
    canvas.text(rng, 270, top + 48, 1220, _STATUS_TOP - 16, ((235, 235, 235),), pitch=36, height=18)
    record = Record(
        description=f"Running code below a {theme.name} editor",
        activity="coding",
        apps=("VS Code", "Terminal"),
        topics=("source code", "shell"),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def _terminal(
    size: tuple[int, int], rng: random.Random, panes: int, colors: tuple[Color, ...]
) -> tuple[Canvas, Theme, str]:
    theme, accent = rng.choice((DARK, DARK, LIGHT)), pick_accent(rng)
    background = (0, 0, 0) if theme is DARK else (255, 255, 250)
    canvas = Canvas(size, background)
    canvas.box(0, 0, WIDTH, 60, ACCENTS[accent])
    pane = WIDTH / panes
    for i in range(panes):
        left = i * pane
        if i:
            canvas.box(left - 16, 60, left + 16, HEIGHT, ACCENTS[accent])
        canvas.text(rng, left + 40, 96, left + pane - 40, HEIGHT - rng.randint(30, 260), colors, pitch=38, height=18)
    return canvas, theme, accent


def passing_tests(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a terminal of one to three panes, all green."""
    panes = rng.randint(1, 3)
    canvas, theme, accent = _terminal(size, rng, panes, (SUCCESS,))
    record = Record(
        description=f"Watching tests pass in a terminal with {count_of(panes, 'pane')}",
        activity="testing",
        apps=("Terminal",),
        topics=("tests",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def failing_tests(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a terminal of one to three panes, mostly red."""
    panes = rng.randint(1, 3)
    canvas, theme, accent = _terminal(size, rng, panes, (ERROR, ERROR, ERROR, (150, 150, 150)))
    record = Record(
        description=f"Reading failed tests in a terminal with {count_of(panes, 'pane')}",
        activity="debugging",
        apps=("Terminal",),
        topics=("tests", "errors"),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def reading_log(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a terminal of one to three panes in grey."""
    panes = rng.randint(1, 3)
    canvas, theme, accent = _terminal(size, rng, panes, ((165, 165, 165), (135, 135, 135)))
    record = Record(
        description=f"Reading a log in a terminal with {count_of(panes, 'pane')}",
        activity="monitoring",
        apps=("Terminal",),
        topics=("logs",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)
