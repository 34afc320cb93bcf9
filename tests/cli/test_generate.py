"""`vlmd generate` against a real daemon with the fake model."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TIMEOUT_S, Command
from vlmd_bridge.cli.main import main
from vlmd_bridge.cli.printable import without_controls

FAKE = ("--model", "fake")
SLOW = ("--model", "fake:step_ms=20,tokens=60")


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(line.get("delta", "") for line in lines)


def test_text_and_a_line_feed(vlmd: Command) -> None:
    done = vlmd.run("generate", *FAKE, "Say something.")
    lines = vlmd.lines("generate", "--json", "Say something.")
    assert done.stdout == f"{lines[-1]['text']}\n"
    assert "考える" not in done.stdout + done.stderr  # what it thought is for a terminal, or for --json
    assert lines[-1]["done"] is True
    assert lines[-1].keys() == {"text", "finishReason", "usage", "reasoning", "done"}
    assert text_of(lines) == lines[-1]["text"]
    assert "".join(line.get("reasoningDelta", "") for line in lines) == lines[-1]["reasoning"]
    without = vlmd.lines("generate", "--json", "--no-thinking", "Say something.")
    assert all("reasoningDelta" not in line for line in without)
    assert without[-1]["text"] == lines[-1]["text"]


def test_text_appears_as_it_comes(vlmd: Command) -> None:
    with vlmd.start("generate", *SLOW, "--no-thinking", "Say something.") as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1000)
        assert process.poll() is None
        rest = process.stdout.read()
    assert first
    assert len(rest) > len(first)


def test_prompts_from_stdin_file_and_system(vlmd: Command, tmp_path: Path) -> None:
    asked = vlmd.run("generate", *FAKE, "Say something.").stdout
    assert vlmd.run("generate", "-", stdin="Say something.").stdout == asked
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"role": "system", "content": "Be brief."}, *turns]))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"messages": [*turns, {"role": "user", "content": "More."}]}))
    from_file = vlmd.run("generate", "--messages", str(chat), "More.").stdout
    assert vlmd.run("generate", "--messages", str(whole), "--system", "Be brief.").stdout == from_file
    assert from_file not in (asked, vlmd.run("generate", "--messages", str(whole)).stdout)


def test_pictures(vlmd: Command, frames: list[str]) -> None:
    done = vlmd.run("generate", *FAKE, "What is this?", "--image", frames[0], "--image", frames[1])
    assert done.stdout.startswith("Picture ")
    relative = os.path.relpath(frames[0], vlmd.folder)
    assert vlmd.run("generate", "What?", "--image", relative).stdout.startswith("Picture ")
    failed = vlmd.run("generate", "--json", "What?", "--image", "absent.png", status=1)
    error = json.loads(failed.stdout)
    assert error["code"] == "image_not_found"
    assert str(vlmd.folder / "absent.png") in error["error"]
    assert "[image_not_found]" in failed.stderr


def test_schema_and_regex(vlmd: Command, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"app": {"type": "string"}}, "required": ["app"]}))
    done = vlmd.run("generate", *FAKE, "Which app?", "--schema", str(schema))
    assert json.loads(done.stdout).keys() == {"app"}
    lines = vlmd.lines("generate", "--json", "Which app?", "--schema", str(schema))
    assert lines[-1]["value"] == json.loads(done.stdout)
    assert vlmd.run("generate", "Yes or no?", "--regex", "yes|no").stdout in ("yes\n", "no\n")
    cut = vlmd.run("generate", "Which?", "--no-thinking", "--schema", str(schema), "--max-tokens", "3", status=1)
    assert "[truncated]" in cut.stderr


def test_sampling_and_limits(vlmd: Command) -> None:
    sampled = ("generate", *FAKE, "Say something.", "--temperature", "1", "--top-p", "0.9", "--top-k", "40")
    seeded = vlmd.run(*sampled, "--seed", "7").stdout
    assert vlmd.run(*sampled, "--seed", "7").stdout == seeded != vlmd.run(*sampled, "--seed", "8").stdout
    whole = vlmd.run("generate", "Say something.").stdout
    cut = vlmd.run("generate", "--no-thinking", "Say something.", "--max-tokens", "3")
    assert whole.startswith(cut.stdout.rstrip("\n"))
    assert "cut off after 3 tokens" in cut.stderr
    word = whole.split()[2]
    assert whole.startswith(vlmd.run("generate", "Say something.", "--stop", word, "--stop", "#").stdout.rstrip("\n"))


def test_count(vlmd: Command) -> None:
    assert "it fits the context of" in vlmd.run("generate", *FAKE, "--count", "Say something.").stdout
    (count,) = vlmd.lines("generate", "--count", "--json", "Say something.", "--max-tokens", "100000", status=1)
    assert count["fits"] is False
    assert count["promptTokens"] > 0


def test_interrupt_cancels_and_exits_130(vlmd: Command) -> None:
    with vlmd.start("generate", *SLOW, "--json", "Say something.") as process:
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


def test_reader_that_has_enough_ends_it_quietly(vlmd: Command) -> None:
    with vlmd.start("generate", *SLOW, "--json", "Say something.") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 141
    assert "Traceback" not in err


def test_on_a_terminal_thinking_is_dimmed(vlmd: Command) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-P", "-m", "vlmd", "generate", *FAKE, "Say something."]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, env=vlmd.environment, cwd=vlmd.folder
    )
    os.close(slave)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    shown = b""
    while select.select([master], [], [], 0)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
    os.close(master)
    assert process.returncode == 0
    dimmed = shown.decode().partition("\x1b[2m")[2].partition("\x1b[0m")[0]
    assert dimmed.startswith("The prompt has")
    assert "考える" not in out.decode()


def test_controls_do_not_reach_a_terminal() -> None:
    assert without_controls("a\x1b[31m\tb\r\n👩‍💻\x9b") == "a\ufffd[31m\tb\ufffd\n👩‍💻\ufffd"


def test_a_text_model_beside_gets_prompts_without_pictures(vlmd: Command, frames: list[str]) -> None:
    vlmd.config.write_text('model = "fake"\ntext_model = "fake:tokens=8"\n')
    vlmd.run("generate", "Say something.")
    models = json.loads(vlmd.run("status", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["fake", "fake:tokens=8"]
    vlmd.run("generate", "What?", "--image", frames[0])
    vlmd.run("generate", "--model", "fake", "What?", "--image", frames[0])
    done = vlmd.run("generate", "--model", "other/model", "x", status=4)
    assert "vlmd stop" in done.stderr


def test_what_the_daemon_refuses(vlmd: Command) -> None:
    done = vlmd.run("generate", *FAKE, "x", "--temperature", "3", "--json", status=2)
    assert json.loads(done.stdout)["code"] == "invalid_params"
    assert "params.temperature" in done.stderr
    done = vlmd.run("generate", "-", "--json", stdin="word " * 100_000, status=1)
    assert json.loads(done.stdout)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give a prompt"),
        ([" "], "prompt is empty"),
        (["-"], "standard input is empty"),
        (["x", "--schema", "absent"], "cannot be read"),
        (["x", "--schema", "{bad}"], "cannot be read"),
        (["x", "--schema", "{bad}", "--regex", "a"], "not allowed with"),
        (["--messages", "absent"], "cannot be read"),
        (["--messages", "{bad}"], "cannot be read"),
        (["--messages", "{empty}"], "holds no messages"),
        (["--messages", "{strings}"], "message 0 is none"),
        (["--messages", "{role}"], "'tool'"),
        (["x", "--temperature", "warm"], "invalid float"),
    ],
)
def test_usage_errors_exit_2_and_start_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    contents = {"bad": "{", "empty": "[]", "strings": '["x"]', "role": '[{"role": "tool", "content": "x"}]'}
    files = {name: tmp_path / name for name in contents}
    for name, file in files.items():
        file.write_text(contents[name])
    # In this process, so that a dozen take no longer than one; what would be started is told apart by its socket.
    monkeypatch.setenv("VLMD_SOCKET", "/tmp/vlmd-no-such-folder/s.sock")
    monkeypatch.setattr(sys, "stdin", io.StringIO(" "))
    assert main(["generate", *FAKE, *(argument.format(**files) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not Path("/tmp/vlmd-no-such-folder").exists()
