"""Table, progress and text of others on a terminal."""

from __future__ import annotations

import os
import sys

import pytest

from vlmd_bridge.cli import progress
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.table import Table
from vlmd_protocol.messages import FrameResult


def frame(**fields: object) -> FrameResult:
    values: dict[str, object] = {
        "index": 3,
        "timestamp": 1.5,
        "image_path": "/a/frame.png",
        "description": "An editor",
        "activity": "coding",
        "apps": ["VS Code"],
        "topics": [],
    }
    return FrameResult(**(values | fields))  # type: ignore[arg-type]


def test_printable_takes_the_power_from_control_characters() -> None:
    assert printable("plain ä文") == "plain ä文"
    assert printable("a\x1b[2Jb\n\u202ec") == "a\ufffd[2Jb\ufffd\ufffdc"


def test_row_of_a_frame_and_of_one_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(with_time=True)
    table.row(frame(description="x" * 300))
    table.row(frame(error="No file", code="image_not_found"))
    head, row, failed = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "#"
    assert row.endswith("x" * 300)  # stdout is no terminal here: nothing is cut
    assert "FAILED" in failed
    assert failed.endswith("No file [image_not_found]")


def test_rows_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((130, 24)))
    table = Table(with_time=False)
    table.row(frame(description="文" * 300, activity="編集" * 20))
    for line in capsys.readouterr().out.splitlines():
        cells = sum(2 if ord(char) > 0x2E80 else 1 for char in line)
        assert cells <= 130


def test_rate_does_not_count_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = progress.Rate(12)
    now = 160.0
    assert rate.of(4) == (None, None)
    now = 162.0
    assert rate.of(8) == (2.0, 2.0)


def test_plain_progress_prints_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress.progress_view(100) as view:
        assert isinstance(view, progress.PlainProgress)
        for done in range(1, 21):
            now += 1
            view.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "vlmd: 20 of 100 frames, 1.00 frames/s, 80 s left"


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_view(10) as view:
        assert isinstance(view, progress.BarProgress)
        view.note("loading")
        view.update(5)
        print("a row")
    captured = capsys.readouterr()
    assert captured.out == "a row\n"  # stdout is no terminal: rows stay on it
