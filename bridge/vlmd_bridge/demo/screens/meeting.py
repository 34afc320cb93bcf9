"""Chats, calls and slides."""

from __future__ import annotations

import random

from vlmd_bridge.demo.canvas import ACCENTS, ERROR, HEIGHT, SKIN, WIDTH, Canvas, jitter, pick_accent, pick_theme
from vlmd_bridge.demo.frame import Scene, count_of
from vlmd_bridge.record import Record

# People in a call and how they are laid out: rows, columns.
_CALL_GRIDS = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 9: (3, 3)}


def chatting(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a team chat in which up to three channels are unread."""
    theme, accent, unread = pick_theme(rng), pick_accent(rng), rng.randint(0, 3)
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    canvas.box(0, 0, 340, HEIGHT, (60, 25, 62))
    marked = rng.sample(range(7), unread)
    for slot in range(7):
        y = 130 + slot * 92
        if slot in marked:
            canvas.box(0, y - 38, 340, y + 38, (255, 255, 255))
            canvas.disc(286, y, 30, ERROR)
        canvas.text(rng, 40, y - 8, 230, y + 8, ((150, 125, 152),))
    canvas.box(340, 0, WIDTH, 64, ACCENTS[accent])
    y = 110
    while y < HEIGHT - 100:
        canvas.box(380, y, 430, y + 50, jitter(rng, rng.choice(tuple(ACCENTS.values())), 30))
        canvas.text(rng, 460, y, 1220, y + 60, (theme.muted,), pitch=28, height=12)
        y += 104
    record = Record(
        description=f"Reading a {theme.name} team chat with {count_of(unread, 'unread channel')}",
        activity="chatting",
        apps=("Slack",),
        topics=("team chat",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)


def calling(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a video call of one to nine people."""
    theme, accent, people = pick_theme(rng), pick_accent(rng), rng.choice(tuple(_CALL_GRIDS))
    rows, columns = _CALL_GRIDS[people]
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    canvas.box(0, HEIGHT - 80, WIDTH, HEIGHT, ACCENTS[accent])
    canvas.disc(WIDTH / 2, HEIGHT - 40, 28, (250, 250, 250))
    width, height = (WIDTH - 40) / columns, (HEIGHT - 120) / rows
    for i in range(people):
        x, y = 20 + i % columns * width, 20 + i // columns * height
        canvas.box(x + 12, y + 12, x + width - 12, y + height - 12, jitter(rng, (95, 110, 130), 25))
        radius = min(width, height) * 0.2
        center_x = x + width / 2 + rng.uniform(-0.05, 0.05) * width
        center_y = y + height * 0.4 + rng.uniform(-0.04, 0.04) * height
        shirt = jitter(rng, (40, 50, 70), 30)
        canvas.slice(center_x, y + height - 12, radius * 1.7, 180, 360, shirt)
        canvas.disc(center_x, center_y, radius, rng.choice(SKIN))
    record = Record(
        description=f"In a video call with {count_of(people, 'person', 'people')}",
        activity="meeting",
        apps=("Zoom",),
        topics=("video call",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent, people=people)


def presenting(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a slide of one to four bullets."""
    theme, accent, bullets = pick_theme(rng), pick_accent(rng), rng.randint(1, 4)
    canvas = Canvas(size, jitter(rng, theme.background, 4))
    canvas.box(100, 24, WIDTH - 100, HEIGHT - 24, ACCENTS[accent])
    ink = (20, 20, 24) if accent in ("yellow", "orange") else (250, 250, 250)
    canvas.box(160, 60, rng.randint(640, 760), 120, ink)
    for i in range(bullets):
        # A picture's token covers 160 units: each bullet has a row of them to itself.
        y = 160 * (i + 1) + 80
        canvas.disc(200, y, 34, ink)
        canvas.box(260, y - 34, WIDTH - 180 + rng.randint(-40, 40), y + 34, ink)
    record = Record(
        description=f"Presenting a {accent} slide with {count_of(bullets, 'bullet')}",
        activity="presenting",
        apps=("Keynote",),
        topics=("presentation",),
    )
    return canvas, Scene(record=record, theme=theme, accent=accent)
