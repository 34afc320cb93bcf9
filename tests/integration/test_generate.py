"""`generate` and `count_tokens` against a live daemon: deltas, pictures, cancel, crashes, two models."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually, results

SLOW = "fake:step_ms=20,tokens=200,width=4"


def _delta_text(lines: list[dict[str, Any]]) -> str:
    return "".join(line.get("delta", "") for line in lines)


def test_deltas_are_the_text(daemon: Daemon) -> None:
    lines = daemon.ask("generate", prompt="Tell me something.", maxTokens=40)
    last = lines[-1]
    assert len(lines) > 2
    assert _delta_text(lines) == last["text"]
    assert last["finishReason"] in ("stop", "length")
    assert last["usage"]["completionTokens"] > 0
    assert last["usage"]["promptTokens"] > 0
    assert all("done" not in line for line in lines[:-1])


def test_without_stream_there_is_one_line_with_the_same_text(daemon: Daemon) -> None:
    streamed = daemon.ask("generate", prompt="Tell me something.", maxTokens=40)[-1]
    (alone,) = daemon.ask("generate", prompt="Tell me something.", maxTokens=40, stream=False)
    assert (alone["text"], alone["finishReason"]) == (streamed["text"], streamed["finishReason"])


def test_messages_and_pictures(daemon: Daemon, pictures: list[str]) -> None:
    def ask(path: str) -> str:
        content = [{"type": "image", "imagePath": path}, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        return str(daemon.ask("generate", messages=messages)[-1]["text"])

    assert ask(pictures[0]) == ask(pictures[0])
    assert ask(pictures[0]) != ask(pictures[1])


def test_a_picture_that_cannot_be_read_ends_it_with_the_frames_code(daemon: Daemon) -> None:
    (line,) = daemon.ask("generate", prompt="What?", images=[{"imagePath": "/nowhere/a.png"}])
    assert line["code"] == "image_not_found"
    assert line["done"] is True


def test_it_overtakes_a_job_of_many_frames(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model="fake:step_ms=10,tokens=40,width=4").wait_ready()
    with daemon.connect() as connection:
        connection.ask(0, "hello")
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures])
        connection.line()
        connection.send(2, "generate", prompt="Quick!", maxTokens=5)
        lines: list[dict[str, Any]] = []
        while not (lines and lines[-1].get("done")):
            lines.append(connection.line())
        assert lines[-1]["id"] == 2
        assert len(results(connection.answer())) + sum(len(line.get("results", [])) for line in lines) < 48


def test_cancel_says_so_once(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        connection.ask(0, "hello")
        connection.send(1, "generate", prompt="A long story.", maxTokens=150)
        first = connection.line()
        assert first["id"] == 1
        connection.send(2, "cancel", target=1)
        lines = connection.answer()
        assert (lines[-1]["code"], lines[-1]["data"]) == ("cancelled", {"finishReason": "cancelled"})
        assert connection.answer()[-1]["result"] == {"cancelled": True}
    eventually(lambda: daemon.status()["queue"]["running"] == 0)


def test_a_crash_after_the_first_delta_is_told_and_not_run_again(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(model=SLOW).wait_ready()
    with daemon.connect() as connection:
        connection.send(1, "generate", prompt="A long story.", maxTokens=150)
        connection.line()
        os.kill(daemon.engine_pid, signal.SIGKILL)
        lines = connection.answer()
    assert (lines[-1]["code"], lines[-1]["retryable"]) == ("worker_crashed", True)
    eventually(lambda: daemon.status()["models"][0]["state"] == "ready")
    assert daemon.ask("generate", prompt="Again.", maxTokens=5)[-1]["done"]


def test_count_tokens_counts_pictures_and_says_whether_it_fits(daemon: Daemon, pictures: list[str]) -> None:
    (text,) = daemon.ask("count_tokens", prompt="one two three", maxTokens=100)
    (with_picture,) = daemon.ask("count_tokens", prompt="one two three", images=[{"imagePath": pictures[0]}])
    assert text["result"]["fits"] is True
    assert with_picture["result"]["promptTokens"] > text["result"]["promptTokens"] > 0
    (long,) = daemon.ask("count_tokens", prompt="word " * 100, maxTokens=131_072)
    assert long["result"]["fits"] is False
    assert long["result"]["contextTokens"] > 0


def test_a_request_goes_to_the_model_its_content_needs(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--text-model", "fake:width=2", model="fake:width=4").wait_ready()
    models = {model["name"]: model for model in daemon.status()["models"]}
    assert set(models) == {"fake:width=4", "fake:width=2"}
    (line,) = daemon.ask("generate", prompt="x", model="fake:width=9")
    assert line["code"] == "model_not_loaded"
    assert daemon.ask("generate", prompt="x", images=[{"imagePath": pictures[0]}], thinking=False)[-1]["text"]


@pytest.mark.parametrize("method", ["generate", "count_tokens"])
def test_neither_prompt_nor_messages(daemon: Daemon, method: str) -> None:
    (line,) = daemon.ask(method)
    assert line["code"] == "invalid_params"
    (line,) = daemon.ask(method, prompt="x", messages=[{"role": "user", "content": "x"}])
    assert line["code"] == "invalid_params"


def test_a_prompt_beyond_the_context_is_counted_and_does_not_fit(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(model="fake:context=50").wait_ready()
    (line,) = daemon.ask("count_tokens", prompt="word " * 100, maxTokens=1)
    assert line["result"] == {"promptTokens": 125, "contextTokens": 50, "maxTokens": 1, "fits": False}
    (line,) = daemon.ask("generate", prompt="word " * 100)
    assert line["code"] == "context_length_exceeded"
