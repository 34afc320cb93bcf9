"""Pages in a browser."""

from __future__ import annotations

import random

from vlmd_bridge.demo.canvas import ACCENTS, HEIGHT, WIDTH, Canvas, Theme, jitter, pick_accent, pick_theme
from vlmd_bridge.demo.frame import Scene, count_of
from vlmd_bridge.record import Record

_PAGE_TOP = 132


class _Browser:
    """A browser window with one to five tabs; the page is drawn by the caller."""

    def __init__(self, size: tuple[int, int], rng: random.Random) -> None:
        self.theme: Theme = pick_theme(rng)
        self.accent = pick_accent(rng)
        self.tabs = count_of(count := rng.randint(1, 5), "tab")
        self.canvas = Canvas(size, jitter(rng, self.theme.background, 4))
        self.canvas.tabs(count, self.theme, width=190, left=40)
        self.canvas.box(0, 72, WIDTH, _PAGE_TOP, ACCENTS[self.accent])
        self.canvas.box(160, 88, 1120, 116, (250, 250, 250))

    def scene(self, what: str, activity: str, topic: str) -> Scene:
        """Return what this window shows."""
        record = Record(
            description=f"{what} in a browser with {self.tabs}",
            activity=activity,
            apps=("Chrome",),
            topics=(topic,),
        )
        return Scene(record=record, theme=self.theme, accent=self.accent)


def reading_documentation(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a page with a navigation column, a title and a code sample."""
    browser = _Browser(size, rng)
    canvas, theme = browser.canvas, browser.theme
    canvas.box(0, _PAGE_TOP, 260, HEIGHT, theme.panel)
    canvas.text(rng, 30, 170, 230, HEIGHT - 30, (theme.muted,), pitch=44)
    canvas.box(320, 170, rng.randint(640, 900), 220, theme.ink)
    sample_top = rng.randint(420, 540)
    canvas.text(rng, 320, 250, 1200, sample_top - 20, (theme.muted,), pitch=30)
    canvas.box(320, sample_top, 1200, HEIGHT - 40, theme.panel)
    canvas.text(rng, 350, sample_top + 30, 1160, HEIGHT - 60, ((70, 90, 200), (190, 70, 90)), pitch=34)
    return canvas, browser.scene("Reading documentation", "reading", "documentation")


def searching(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a page of search results."""
    browser = _Browser(size, rng)
    canvas, theme = browser.canvas, browser.theme
    canvas.box(100, 160, rng.randint(720, 860), 204, theme.panel)
    y = 240
    while y < HEIGHT - 90:
        canvas.box(100, y, 100 + rng.randint(300, 600), y + 26, (60, 90, 235))
        canvas.text(rng, 100, y + 40, 900, y + 90, (theme.muted,), pitch=24, height=12)
        y += 118
    return canvas, browser.scene("Searching the web", "research", "web search")


def reviewing_code(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a page of added and removed lines."""
    browser = _Browser(size, rng)
    canvas, theme = browser.canvas, browser.theme
    dark = theme.name == "dark"
    added = (20, 90, 40) if dark else (170, 240, 180)
    removed = (110, 25, 30) if dark else (255, 180, 180)
    y = 160
    while y < HEIGHT - 40:
        # Runs of at least two lines: single lines blur into one tint when the picture is made small.
        color = rng.choice((added, removed, theme.background))
        for _ in range(rng.randint(2, 4)):
            if y >= HEIGHT - 40:
                break
            canvas.box(40, y, 1240, y + 34, color)
            canvas.box(90, y + 10, 90 + rng.randint(150, 900), y + 24, theme.muted)
            y += 34
    return canvas, browser.scene("Reviewing a change", "review", "code review")


def watching_video(size: tuple[int, int], rng: random.Random) -> tuple[Canvas, Scene]:
    """Draw a video, playing or paused, beside a list of others."""
    browser = _Browser(size, rng)
    canvas, theme = browser.canvas, browser.theme
    paused = rng.random() < 0.5
    canvas.box(60, 170, 900, 640, (15, 15, 18))
    if paused:
        canvas.disc(480, 400, 110, (245, 245, 245))
        canvas.polygon(((445, 335), (445, 465), (560, 400)), (15, 15, 18))
    else:
        horizon = rng.randint(360, 480)
        canvas.box(80, 190, 880, horizon, jitter(rng, (110, 170, 230), 20))
        canvas.box(80, horizon, 880, 620, jitter(rng, (80, 140, 70), 20))
        peak = rng.randint(250, 700)
        canvas.polygon(((peak - 160, horizon), (peak, horizon - 140), (peak + 160, horizon)), (110, 90, 80))
    canvas.box(60, 650, 900, 664, theme.muted)
    canvas.box(60, 650, rng.randint(120, 860), 664, (235, 20, 20))
    for i in range(4):
        canvas.box(950, 170 + i * 150, 1220, 290 + i * 150, jitter(rng, (150, 150, 165), 30))
    state = "paused" if paused else "playing"
    return canvas, browser.scene(f"Watching a {state} video", "watching", "video")
