"""`vlmd demo`: draws, describes, compares. What the demo model itself achieves is measured with it, not here."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import Command
from vlmd_bridge.cli.demo import is_enough


@pytest.mark.parametrize(
    ("right", "count", "enough"),
    [(24, 24, True), (22, 24, True), (21, 24, False), (11, 12, True), (10, 12, False), (1, 1, True), (0, 1, False)],
)
def test_what_is_enough(right: int, count: int, enough: bool) -> None:
    assert is_enough(right, count) is enough


def test_frames_are_compared_with_the_truth(vlmd: Command) -> None:
    # The fake model knows nothing of what is drawn: nothing can be right, and all of it is said.
    *frames, summary = vlmd.lines("demo", "--model", "fake", "--frames", "5", "--seed", "3", "--json", status=1)
    assert [frame["index"] for frame in frames] == list(range(5))
    assert [frame["timestamp"] for frame in frames] == [0, 10, 20, 30, 40]
    assert not any(frame["right"] for frame in frames)
    assert all(frame["expected"].keys() == {"description", "activity", "apps", "topics"} for frame in frames)
    assert (summary["frames"], summary["right"], summary["passed"], summary["seed"]) == (5, 0, False, 3)
    # A daemon of its own: the shared socket is not touched, and nothing is left.
    assert not vlmd.socket.exists()


def test_the_seed_decides_what_is_drawn(vlmd: Command) -> None:
    def expected(seed: str) -> list[object]:
        lines = vlmd.lines("demo", "--model", "fake", "--frames", "3", "--seed", seed, "--json", status=1)
        return [line["expected"] for line in lines[:-1]]

    assert expected("1") == expected("1")
    assert expected("1") != expected("2")


def test_text_shows_batches_and_a_verdict(vlmd: Command) -> None:
    done = vlmd.run("demo", "--model", "fake", "--frames", "5", status=1)
    assert "batch 1: 4 of 5 frames" in done.stdout
    assert "batch 2: 5 of 5 frames" in done.stdout
    assert done.stdout.count("expected:") == 5
    assert "0 of 5 frames exactly right" in done.stdout


def test_no_frames_and_too_many_are_usage_errors(vlmd: Command) -> None:
    for count in ("0", "1000000"):
        assert json.loads(vlmd.run("demo", "--frames", count, "--json", status=2).stdout)["code"] == "usage"
