"""`vlmd bench`: figures that hang together, with the fake model and with the demonstration's."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import Command


def test_figures_of_the_fake_model(vlmd: Command) -> None:
    (found,) = vlmd.lines("bench", "--model", "fake:step_ms=2", "--frames", "6", "--without", "none", "--json")
    assert (found["frames"], found["width"], found["optimisations"]) == (6, 8, [])
    assert found["framesPerS"] > 0
    assert found["tokensPerS"] == pytest.approx(found["framesPerS"] * found["recordTokens"])
    assert 0 < found["imageTokens"] < found["promptTokens"]
    assert set(found["memoryBytes"]) == {"daemon", "engine", "image process 1"}
    assert all(size > 1e6 for size in found["memoryBytes"].values())
    assert found["hints"]
    # Daemons of its own: the shared socket is not touched.
    assert not vlmd.socket.exists()


def test_configured_width_is_measured_and_hinted_at(vlmd: Command) -> None:
    vlmd.environment["VLMD_WIDTH"] = "2"
    done = vlmd.run("bench", "--model", "fake", "--frames", "4", "--without", "none")
    assert "width 2" in done.stdout
    assert "set width to 8" in done.stdout


def test_the_configured_interpreter_is_measured(vlmd: Command) -> None:
    vlmd.config.write_text('python = "/nowhere/python"\n')
    done = vlmd.run("bench", "--model", "fake", "--frames", "4", "--without", "none", "--json", status=3)
    failure = json.loads(done.stdout)
    assert failure["code"] == "daemon_not_found"
    assert "/nowhere/python" in failure["error"]


def test_a_frame_that_fails_is_no_speed(vlmd: Command) -> None:
    vlmd.environment["VLMD_MAX_SOURCE_PIXELS"] = "100"
    done = vlmd.run("bench", "--model", "fake", "--frames", "4", "--without", "none", "--json", status=1)
    failure = json.loads(done.stdout)
    assert failure["code"] == "image_too_large"
    assert "Frame 0 failed" in failure["error"]


def test_usage_errors(vlmd: Command) -> None:
    for arguments in (["--frames", "0"], ["--without", "magic"]):
        done = vlmd.run("bench", "--model", "fake", *arguments, "--json", status=2)
        assert json.loads(done.stdout)["code"] == "usage"


@pytest.mark.model
def test_an_optimisation_is_compared_in_turns_on_the_demo_model(vlmd: Command) -> None:
    done = vlmd.run("bench", "--model", "demo", "--frames", "4", "--without", "shared_prefix", "--json")
    found = json.loads(done.stdout)
    assert (found["model"], found["dtype"]) == ("demo", "float32")
    assert 15 < found["recordTokens"] < 60
    assert found["imageTokens"] == 42  # 40 of 256x160 pixels, and two around them
    (one,) = found["optimisations"]
    assert one["name"] == "shared_prefix"
    assert one["low"] <= one["gain"] <= one["high"]
    assert one["turns"] >= 2
