"""The comparison as an SVG: bars with their spread, written by hand: no library is needed for that."""

from __future__ import annotations

from html import escape
from pathlib import Path

from benchmark.race import INSTALLED, LIMIT, PRELOADED, VLMD, Race, Row

_WIDTH = 860
_LEFT = 330
_RIGHT = 110
_BAR = 20
_PITCH = 30
_TOP = 56

_COLORS = {VLMD: "#1d6fd8", LIMIT: "#9aa4b2", PRELOADED: "#e08a2e", INSTALLED: "#c95252"}


def write_plot(path: Path, race: Race) -> None:
    """Write the bars, fastest first."""
    rows = sorted(race.rows, key=lambda row: -row.speed.median)
    most = max(row.speed.high for row in rows)
    height = _TOP + _PITCH * len(rows) + 34
    title = f"Frames per second, {race.frames_per_round} unique 1280x800 frames a round"
    note = "median of rounds in turns; the line is the least to the most; right: frames per second, exact records"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif"'
        ' font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="16" font-weight="bold" fill="#1b1f24">{title}</text>',
        f'<text x="16" y="43" fill="#57606a">{note}</text>',
    ]
    for position, row in enumerate(rows):
        parts += _bar(row, _TOP + position * _PITCH, (_WIDTH - _LEFT - _RIGHT) / most)
    legend = 16.0
    for name, label in ((VLMD, "vlmd"), (LIMIT, "limit"), (PRELOADED, PRELOADED), (INSTALLED, INSTALLED)):
        y = height - 22
        parts.append(f'<rect x="{legend:.0f}" y="{y}" width="12" height="12" fill="{_COLORS[name]}"/>')
        parts.append(f'<text x="{legend + 18:.0f}" y="{y + 11}" fill="#57606a">{label}</text>')
        legend += 40 + 8 * len(label)
    path.write_text("\n".join([*parts, "</svg>", ""]))


def _bar(row: Row, y: int, scale: float) -> list[str]:
    color = next(color for name, color in _COLORS.items() if row.name.startswith(name) or row.name.endswith(name))
    speed = row.speed
    middle = y + _BAR / 2
    end = _LEFT + speed.high * scale
    return [
        f'<text x="{_LEFT - 10}" y="{y + 15}" text-anchor="end" fill="#1b1f24">{escape(row.name)}</text>',
        f'<rect x="{_LEFT}" y="{y}" width="{speed.median * scale:.1f}" height="{_BAR}" fill="{color}"/>',
        f'<line x1="{_LEFT + speed.low * scale:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}" stroke="#1b1f24"/>',
        f'<text x="{end + 8:.1f}" y="{y + 15}" fill="#1b1f24">{speed.median:.1f} · {row.exact / row.asked:.0%}</text>',
    ]
