"""Fenced blocks of the documents."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"

# Chapters for users. The others are for those who work on vlmd, or are generated.
CHAPTERS = ("quick-start", "configuration", "embedding", "troubleshooting", "adr-006")

# Run as printed. `console` is what a test must not do: install, download, stay in the foreground.
RUN = ("sh", "python", "js")
SHOWN = ("console", "json", "toml")

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text(chapter: str) -> str:
    """Return the chapter's source."""
    return (DOCS / f"{chapter}.md").read_text(encoding="utf-8")


def blocks(chapter: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block, in order."""
    return _FENCE.findall(text(chapter))


def sections(chapter: str) -> set[str]:
    """Return the anchors that a link may name."""
    titles = re.findall(r"^#+ (.*)$", text(chapter), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
