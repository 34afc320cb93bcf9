"""The bench's own arithmetic: verdicts, accuracy of peers, stale records, and the document it updates."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.figures import judge, quantile, ratios
from benchmark.frames import Frames
from benchmark.plot import write_plot
from benchmark.race import ADR, INSTALLED, LIMIT, PRELOADED, VLMD, Race, Row
from benchmark.repeats import count_frames
from benchmark.report import text, update_document
from benchmark.targets import Results, verdicts
from vlmd_bridge.demo.screencast import FrameTruth, Kind
from vlmd_bridge.record import Record, format_record

_RECORD = Record(description="Writing code", activity="coding", apps=("VS Code",), topics=("source code",))


def _row(name: str, *speeds: float) -> Row:
    return Row(name=name, frames_per_s=list(speeds), cpu_s_per_frame=[0.05], exact=9, asked=10)


_RACE = Race(
    frames_per_round=48,
    frames_per_peer=12,
    rows=[
        _row(VLMD, 20, 22, 18),
        _row(LIMIT, 21, 23, 19),
        _row(f"{ADR}, {INSTALLED}", 4, 4, 4),
        _row(f"{ADR}, {PRELOADED}", 11, 11, 11),
        _row(f"vllm-mlx, 8 clients, {INSTALLED}", 2, 2, 2),
        _row(f"vllm-mlx, 4 clients, {INSTALLED}", 1, 1, 1),
    ],
    engine={"blas": "/lib/libopenblas.so", "threads": 1, "width": 8, "dtype": "float32"},
    absent=[],
    same_as_alone=12,
    compared_alone=12,
)


@pytest.mark.parametrize(
    ("value", "below", "verdict"),
    [
        (2.6, False, "pass, aim met"),
        (2.3, False, "pass"),
        (2.1, False, "MISS"),
        (None, False, "not measured"),
        (2.3, True, "MISS"),
        (2.1, True, "pass, aim met"),
    ],
)
def test_verdicts(value: float | None, below: bool, verdict: str) -> None:
    assert judge("x", value, least=2.2, aim=2.2 if below else 2.5, below=below).verdict == verdict


def test_ratios_are_of_one_round_each() -> None:
    found = ratios([10, 30, 20], [5, 10, 20])
    assert (found.median, found.low, found.high) == (2, 1, 3)


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile(range(100), 0.99) == 99
    assert quantile([3, 1, 2], 0.5) == 2


def test_the_hardest_peer_counts() -> None:
    found = {each.what: each for each in verdicts(Results(mode="full", race=_RACE))}
    server = found["vlmd / best peer server, as installed"]
    assert (server.verdict, server.measured.split()[0]) == ("pass, aim met", "10.00")
    assert "8 clients" in server.measured
    assert found["vlmd / best of all, OpenBLAS preloaded"].verdict == "MISS"
    assert found["vlmd / the limit"].verdict == "pass, aim met"
    assert found["recording: stale records"].verdict == "not measured"


@pytest.mark.parametrize(
    "answer",
    [
        format_record(_RECORD),
        f"\n  {format_record(_RECORD)}  \n",
        f"Sure, here it is:\nFrame 1: {format_record(_RECORD)}\nAnything else?",
        f"`{format_record(_RECORD)}`",
    ],
)
def test_peers_are_read_leniently(answer: str) -> None:
    assert Frames(paths=["a"], truths=[_RECORD]).exact([answer]) == 1


def test_another_word_is_not_exact() -> None:
    assert Frames(paths=["a"], truths=[_RECORD]).exact([format_record(_RECORD).replace("Writing", "Reading")]) == 0


def _truth(index: int, screen: int, kind: Kind) -> FrameTruth:
    return FrameTruth(index=index, kind=kind, screen=screen, first=0, changed_pixels=0, pointer=(0, 0), record=_RECORD)


def test_stale_is_another_screens_record_through_any_chain() -> None:
    recording = [
        ("0", _truth(0, 0, "changed")),
        ("1", _truth(1, 0, "same")),
        ("2", _truth(2, 1, "changed")),
        ("3", _truth(3, 1, "pointer")),
        ("4", _truth(4, 0, "changed")),
    ]
    originals = [None, 0, 1, None, 0]
    results = [
        {"index": i, **({} if original is None else {"duplicateOf": original})} for i, original in enumerate(originals)
    ]
    counted = count_frames(recording, results)
    assert counted == {"unchanged": 2, "skipped_unchanged": 1, "skipped": 3, "stale": 1, "failed": 0}


def test_the_document_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    names = ("conditions", "targets", "race")
    blocks = "\n".join(f"{name} before\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->" for name in names)
    document.write_text(f"# Title\n{blocks}\nafter\n")
    results = Results(mode="full", date="2026-01-01", race=_RACE)
    update_document(document, results)
    update_document(document, results)
    content = document.read_text()
    assert content.startswith("# Title\nconditions before\n")
    assert content.endswith("\nafter\n")
    assert "old" not in content
    assert content.count("| vlmd | 20.00 (18.00 to 22.00) |") == 1
    assert "2026-01-01" in text(results)


def test_the_document_without_its_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Title\n")
    with pytest.raises(ValueError, match="bench:conditions"):
        update_document(document, Results(mode="full"))


def test_the_plot_has_a_bar_for_each_row(tmp_path: Path) -> None:
    write_plot(tmp_path / "p.svg", _RACE)
    content = (tmp_path / "p.svg").read_text()
    assert all(f">{row.name}<" in content for row in _RACE.rows)
    assert content.count("20.0 · 90%") == 1
