"""The results in words: a table for the terminal, and one in Markdown for the document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmark.figures import spread
from benchmark.race import VLMD, Race
from benchmark.scale import Size
from benchmark.targets import Results, verdicts

_BEGIN = "<!-- bench:{name} -->"
_END = "<!-- /bench:{name} -->"

Table = list[list[str]]


def tables(results: Results) -> dict[str, Table]:
    """Return every table by its name; the first row of each is its head."""
    found = {"targets": _targets(results)}
    if results.race is not None:
        found["race"] = _race(results.race)
    if results.sizes is not None:
        found["sizes"] = _sizes(results.sizes)
    return found


def text(results: Results) -> str:
    """Return all tables for a terminal."""
    parts = [conditions(results)]
    parts += ["\n".join(table_lines(table)) for table in reversed(tables(results).values())]
    if results.fairness is not None:
        parts.append(_fairness(results))
    return "\n\n".join([*parts, *results.notes])


def conditions(results: Results) -> str:
    """Return when, where and with what it was measured."""
    facts = ", ".join(f"{name} {value}" for name, value in results.facts.items())
    lines = [f"{results.date}, {results.mode} run; {facts}."]
    if results.race is not None:
        engine = results.race.engine
        lines.append(
            f"vlmd's engine: {engine.get('dtype')}, BLAS {Path(str(engine.get('blas'))).name}, "
            f"{engine.get('threads')} threads, width {engine.get('width')}. "
            f"Rounds of {results.race.frames_per_round} frames for vlmd, {results.race.frames_per_peer} for a peer."
        )
    return " ".join(lines)


def update_document(document: Path, results: Results) -> None:
    """Put the tables between their markers in `document`.

    Raises:
        ValueError: a marker is missing.
    """
    fairness = [_fairness(results)] if results.fairness is not None else []
    put_between_markers(
        document, tables(results), {"conditions": "\n".join([conditions(results), *fairness, *results.notes])}
    )


def put_between_markers(document: Path, found: Mapping[str, Table], texts: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each name in `document`.

    Raises:
        ValueError: a marker is missing.
    """
    content = document.read_text()
    for name, block in {**texts, **{name: "\n".join(_markdown(table)) for name, table in found.items()}}.items():
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        before, opened, rest = content.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"{document} lacks {begin} or {end}")
        content = f"{before}{begin}\n{block}\n{end}{after}"
    document.write_text(content)


def table_lines(table: Table) -> Iterator[str]:
    """Yield `table` in columns, for a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _markdown(table: Table) -> Iterator[str]:
    head, *rows = table
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _targets(results: Results) -> Table:
    head = ["target", "at least", "aim", "measured", "verdict"]
    return [head, *([each.what, each.least, each.aim, each.measured, each.verdict] for each in verdicts(results))]


def _race(race: Race) -> Table:
    rows = [["", "frames/s, median (spread)", "vlmd is faster by (spread)", "processor ms a frame", "exact records"]]
    for row in sorted(race.rows, key=lambda row: -row.speed.median):
        ratio = race.ratio(row.name)
        faster = "" if row.name == VLMD or ratio is None else f"{ratio.text()} x"
        cpu_ms = f"{spread(row.cpu_s_per_frame).median * 1000:.0f}"
        rows.append(
            [row.name, row.speed.text(), faster, cpu_ms, f"{row.exact} of {row.asked} ({row.exact / row.asked:.0%})"]
        )
    return rows


def _sizes(sizes: Sequence[Size]) -> Table:
    names = list(sizes[-1].memory_mb)
    rows = [["frames", "ms a frame", "processor ms a frame", "exact records", *(f"{name}, MB" for name in names)]]
    rows += [
        [
            str(size.frames),
            f"{size.seconds_per_frame * 1000:.1f}",
            f"{size.cpu_s_per_frame * 1000:.1f}",
            f"{size.exact / size.frames:.1%}",
            *(f"{size.memory_mb.get(name, 0):.0f}" for name in names),
        ]
        for size in sizes
    ]
    return rows


def _fairness(results: Results) -> str:
    return (
        f"Four batch clients, equal jobs: when the first is done, the last has done {results.fairness:.0%} of its own."
    )
