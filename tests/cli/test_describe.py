"""`vlmd describe` against a real daemon with the fake model."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.cli.command import TIMEOUT_S, Command

FAKE = ("--model", "fake")
SLOW = ("--model", "fake:step_ms=50,width=1")


def test_table_has_a_row_for_each_frame_in_order(vlmd: Command, frames: list[str]) -> None:
    done = vlmd.run("describe", *FAKE, "--fps", "2", *frames)
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["#", "time", "picture", "activity", "apps", "description"]
    assert [row.split()[:3] for row in rows] == [
        [str(number), f"{number / 2:.2f}s", f"frame-{number}.png"] for number in range(12)
    ]
    assert "12 described" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_json_prints_a_result_for_each_frame(vlmd: Command, frames: list[str]) -> None:
    lines = vlmd.lines("describe", *FAKE, "--json", "--batch-size", "5", *frames)
    assert [line["index"] for line in lines] == list(range(12))
    assert [line["imagePath"] for line in lines] == frames
    assert len({line["description"] for line in lines}) == 12
    assert lines[0].keys() == {"index", "timestamp", "imagePath", "description", "activity", "apps", "topics"}


def test_results_come_as_they_are_made(vlmd: Command, frames: list[str]) -> None:
    with vlmd.start("describe", *SLOW, "--batch-size", "1", "--json", *frames) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert process.poll() is None
        assert first["index"] == 0
        process.kill()


def test_second_call_finds_the_model_loaded(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, frames[0])
    before = json.loads(vlmd.run("status", "--json").stdout)
    # No model named: the one that is there answers.
    vlmd.run("describe", frames[1])
    after = json.loads(vlmd.run("status", "--json").stdout)
    assert before["pid"] == after["pid"]
    assert after["framesDone"] == 2


def test_failed_frames_are_named_and_the_others_described(vlmd: Command, frames: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    paths = [frames[0], str(tmp_path / "absent.png"), str(text), frames[1]]
    done = vlmd.run("describe", *FAKE, "--json", *paths, status=1)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("code") for line in lines] == [None, "image_not_found", "image_invalid", None]
    assert "absent.png" in done.stderr
    assert "[image_not_found]" in done.stderr
    assert "2 described, 2 failed" in done.stderr
    table = vlmd.run("describe", *paths, status=1).stdout
    assert table.count("FAILED") == 2


def test_output_resumes_without_describing_twice(vlmd: Command, frames: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    absent = tmp_path / "later.png"
    paths = [*frames, str(absent)]
    vlmd.run("describe", *FAKE, "--json", "--output", str(output), *paths[:4], status=0)
    whole = output.read_bytes()
    # As after a kill: four frames, and half a line.
    output.write_bytes(whole + whole[:20])
    first = vlmd.lines("describe", "--json", "--output", str(output), *paths, status=1)
    assert [line["index"] for line in first] == list(range(4, 13))
    absent.write_bytes(Path(frames[0]).read_bytes())
    second = vlmd.run("describe", "--json", "--output", str(output), *paths)
    assert [json.loads(line)["index"] for line in second.stdout.splitlines()] == [12]
    assert "12 were described before" in second.stderr
    assert vlmd.lines("describe", "--json", "--output", str(output), *paths) == []
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in kept] == [*range(13), 12]
    assert json.loads(vlmd.run("status", "--json").stdout)["framesDone"] == 13


def test_killed_run_loses_no_shown_frame(vlmd: Command, frames: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["describe", "--model", "fake:step_ms=20,width=2", "--batch-size", "2", "--json"]
    arguments += ["--output", str(output), *frames]
    with vlmd.start(*arguments) as process:
        assert process.stdout is not None
        shown = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.kill()
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    assert kept[:4] == shown
    rest = vlmd.lines(*arguments)
    assert [line["index"] for line in kept + rest] == list(range(12))


def test_interrupt_cancels_and_exits_130(vlmd: Command, frames: list[str]) -> None:
    with vlmd.start("describe", *SLOW, "--batch-size", "1", "--json", *frames) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while (queue := json.loads(vlmd.run("status", "--json").stdout)["queue"])["jobs"]:
        assert time.monotonic() < deadline, queue


def test_reader_that_has_enough_ends_it_quietly(vlmd: Command, frames: list[str]) -> None:
    with vlmd.start("describe", *FAKE, "--json", "--batch-size", "1", *frames) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_other_model_than_the_one_that_runs(vlmd: Command, frames: list[str]) -> None:
    vlmd.run("describe", *FAKE, frames[0])
    done = vlmd.run("describe", "--model", "other/model", "--json", frames[0], status=4)
    assert json.loads(done.stdout)["code"] == "model_not_loaded"
    assert "serves fake" in done.stderr
    assert "vlmd stop" in done.stderr


def test_no_model_anywhere_names_one_and_the_demo(vlmd: Command, frames: list[str]) -> None:
    done = vlmd.run("describe", "--json", frames[0], status=4)
    error = json.loads(done.stdout)
    assert error["code"] == "model_not_configured"
    assert "hf download" in error["error"]
    assert "--model demo" in error["error"]


def test_model_that_fails_to_load(vlmd: Command, frames: list[str]) -> None:
    done = vlmd.run("describe", "--model", "fake:broken=1", frames[0], status=4)
    assert "model_invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_prompt_and_schema_reach_the_model(vlmd: Command, frames: list[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"app": {"type": "string"}}, "required": ["app"]}))
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Which app?")
    [line] = vlmd.lines("describe", *FAKE, "--json", "--prompt", f"@{prompt}", "--schema", str(schema), frames[0])
    assert isinstance(line["record"]["app"], str)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{f}", "--fps", "0"], "--fps"),
        (["{f}", "--fps", "1", "--timestamps", "x"], "not allowed with"),
        (["{f}", "--batch-size", "0"], "batch_size"),
        (["{f}", "--batch-size", "x"], "invalid int"),
        (["{f}", "--mode", "sideways"], "invalid choice"),
        (["{f}", "--prompt", " "], "prompt is empty"),
        (["{f}", "--prompt", "@absent"], "cannot be read"),
        (["{f}", "--schema", "absent"], "cannot be read"),
        (["{f}", "--schema", "{f}"], "cannot be read"),
        (["{f}", "--output", "{f}"], "no result of vlmd"),
        ([], "required"),
        (["-"], "No pictures"),
    ],
)
def test_usage_errors_exit_2_and_start_nothing(
    vlmd: Command, frames: list[str], arguments: list[str], message: str
) -> None:
    done = vlmd.run("describe", *FAKE, *(argument.format(f=frames[0]) for argument in arguments), status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not vlmd.socket.exists()
