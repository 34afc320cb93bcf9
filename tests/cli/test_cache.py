"""`vlmd describe --cache --dedupe`, and `vlmd cache`, with and without a daemon."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from tests.cli.command import Command


def inferred(vlmd: Command) -> int:
    """Frames of the daemon that the engine has answered for."""
    status = json.loads(vlmd.run("status", "--json").stdout)
    return int(status["framesDone"] - status["framesCached"] - status["framesDuplicate"])


def test_the_second_run_infers_nothing_and_nothing_is_kept_unasked(vlmd: Command, frames: list[str]) -> None:
    vlmd.lines("describe", *frames, "--model", "fake", "--json")
    assert not vlmd.cache.exists()
    plain = vlmd.lines("describe", *frames, "--model", "fake", "--json", "--cache")
    before = inferred(vlmd)
    again = vlmd.lines("describe", *frames, "--model", "fake", "--json", "--cache")
    assert inferred(vlmd) == before
    assert all(result.pop("cached") for result in again)
    assert again == plain
    vlmd.environment["VLMD_CACHE"] = "on"
    vlmd.lines("describe", *frames, "--json", "--no-cache", "--model", "fake")
    assert inferred(vlmd) == before + len(frames)
    vlmd.lines("describe", *frames, "--json", "--model", "fake")
    assert inferred(vlmd) == before + len(frames)


def test_info_and_clear_through_the_daemon_and_on_the_file(vlmd: Command, frames: list[str]) -> None:
    nothing = json.loads(vlmd.run("cache", "info", "--json").stdout)
    assert (nothing["entries"], nothing["bytes"], nothing["enabled"]) == (0, 0, False)
    assert json.loads(vlmd.run("cache", "clear", "--json").stdout)["removed"] == 0
    assert not vlmd.cache.exists()
    vlmd.lines("describe", *frames, "--model", "fake", "--json", "--cache")
    info = json.loads(vlmd.run("cache", "info", "--json").stdout)
    assert (info["state"], info["path"], info["entries"], info["stored"]) == (
        "ready", str(vlmd.cache), len(frames), len(frames),
    )  # fmt: skip
    assert f"{len(frames)}, " in vlmd.run("cache", "info").stdout
    assert "degraded" not in vlmd.run("status").stdout
    vlmd.run("stop")
    assert json.loads(vlmd.run("cache", "info", "--json").stdout)["entries"] == len(frames)
    assert "removed" in vlmd.run("cache", "clear").stdout
    assert json.loads(vlmd.run("cache", "info", "--json").stdout)["entries"] == 0


def test_clear_of_a_store_that_is_locked_says_so(vlmd: Command, frames: list[str]) -> None:
    vlmd.lines("describe", *frames, "--model", "fake", "--json", "--cache")
    vlmd.run("stop")
    locker = sqlite3.connect(vlmd.cache, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    assert "locked" in vlmd.run("cache", "clear", status=1).stdout
    locker.execute("ROLLBACK")
    locker.close()
    assert json.loads(vlmd.run("cache", "info", "--json").stdout)["entries"] == len(frames)


def test_a_resumed_output_names_only_frames_that_are_in_it(vlmd: Command, frames: list[str], tmp_path: Path) -> None:
    recording = []
    for number in range(12):
        path = tmp_path / f"{number:02d}.png"
        shutil.copy(frames[number // 5], path)
        recording.append(str(path))
    output = tmp_path / "out.jsonl"
    options = ("--model", "fake", "--cache", "--dedupe", "--output", str(output))
    vlmd.run("describe", *recording, *options)
    whole = [json.loads(line) for line in output.read_text().splitlines()]
    assert [result.get("duplicateOf") for result in whole] == [None, 0, 0, 0, 0, None, 5, 5, 5, 5, None, 10]
    assert inferred(vlmd) == 3
    # A kill in the middle of the eighth line.
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:7]) + lines[7][:20])
    vlmd.run("describe", *recording, *options)
    assert inferred(vlmd) == 3
    resumed: list[dict[str, Any]] = [json.loads(line) for line in output.read_text().splitlines()]
    assert [result["index"] for result in resumed] == list(range(12))
    texts = {result["index"]: result["description"] for result in resumed}
    for one, other in zip(whole, resumed, strict=True):
        assert one["description"] == other["description"]
        if (original := other.get("duplicateOf")) is not None:
            assert original < other["index"]
            assert texts[original] == other["description"]
            assert "duplicateOf" not in resumed[original]


def test_dedupe_needs_frames_that_stand_for_themselves(vlmd: Command, frames: list[str]) -> None:
    failed = vlmd.run("describe", *frames, "--model", "fake", "--dedupe", "--mode", "interleaved", status=2)
    assert "dedupe" in failed.stderr
    for arguments in ((*frames, "--dedupe", "1.5"), ("--dedupe", *frames)):
        assert "--dedupe: takes a fraction from 0 to 1" in vlmd.run("describe", *arguments, status=2).stderr
