"""The table of promises: rows with their figures, and their place in docs/reliability.md."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmd_bridge import __version__

_BEGIN = "<!-- figures -->"
_END = "<!-- end of figures -->"
_HEAD = ("promise", "what", "size", "held", "figures", "run time", "when and with what")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How one promise fared at one size."""

    promise: str
    what: str
    size: str
    passed: bool
    figures: str
    took_s: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's cells, in the order of the head."""
        took = f"{self.took_s:.0f} s" if self.took_s < 600 else f"{self.took_s / 60:.0f} min"
        held = "yes" if self.passed else "**MISSED**"
        return (self.promise, self.what, self.size, held, self.figures.replace("|", "/"), took, conditions())


def conditions() -> str:
    """Return the date, and the versions that the figures are of."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"{today}, vlmd {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    return _table([row.cells for row in rows])


def write(page: Path, rows: Sequence[Row]) -> None:
    """Put `rows` into the table of `page`, in place of those of the same promise and size.

    Raises:
        ValueError: the page has no place for them.
    """
    text = page.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}")
    before, _, rest = text.partition(_BEGIN)
    old, _, after = rest.partition(_END)
    known = {(cells[0], cells[2]): cells for cells in _read(old)}
    known.update({(row.promise, row.size): row.cells for row in rows})
    ordered = [known[key] for key in sorted(known, key=_order)]
    page.write_text(f"{before}{_BEGIN}\n{_table(ordered)}\n{_END}{after}")


def _order(key: tuple[str, str]) -> tuple[int, str, str]:
    promise, size = key
    number = re.fullmatch(r"\d+", promise)
    return (int(promise) if number else 1000, promise, "" if size == "push" else size)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _read(text: str) -> list[tuple[str, ...]]:
    rows = [
        tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in text.splitlines() if "|" in line
    ]
    return [row for row in rows[2:] if len(row) == len(_HEAD)]
