"""Bad input of `generate` and `count_tokens`: a clear error that names the field, and the daemon answers the next.

Nothing of the input comes back at length: an error line has at most `MAX_LINE_BYTES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon, eventually
from vlmd_protocol.limits import MAX_MESSAGES, MAX_PROMPT_CHARS, MAX_SCHEMA_BYTES

MAX_LINE_BYTES = 500

USER = {"role": "user", "content": "Hello."}
PICTURE = [{"type": "image", "imagePath": "/nowhere/a.png"}]
OBJECT = {"type": "object"}
FIVE_MB = "x" * 5_000_000

SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "`params.temperature`"),
    ({"temperature": 2.1}, "`params.temperature`"),
    ({"temperature": "hot"}, "`params.temperature`"),
    ({"topP": 0}, "`params.topP`"),
    ({"topP": 1.1}, "`params.topP`"),
    ({"topK": -1}, "`params.topK`"),
    ({"repetitionPenalty": 0}, "`params.repetitionPenalty`"),
    ({"seed": -1}, "`params.seed`"),
    ({"seed": True}, "`params.seed`"),
    ({"stop": []}, "`params.stop`"),
    ({"stop": ["a"] * 1000}, "`params.stop`"),
    ({"stop": [""]}, "`params.stop[0]`"),
    ({"stop": ["a" * 1000]}, "`params.stop[0]`"),
    ({"stop": ["a"], "schema": OBJECT}, "`params.stop`"),
    ({"stop": ["a"], "regex": "a"}, "`params.stop`"),
    ({"schema": OBJECT, "regex": "a"}, "`params.schema` or `params.regex`"),
    ({"schema": []}, "`params.schema`"),
    ({"schema": "{}"}, "`params.schema`"),
    ({"regex": ""}, "`params.regex`"),
    ({"regex": "a" * 20_000}, "`params.regex`"),
    ({"priority": "z" * 10_000}, "Invalid enum value"),
]
PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({}, "`params.prompt` or `params.messages`"),
    ({"prompt": "x", "messages": [USER]}, "`params.prompt` or `params.messages`"),
    ({"prompt": ""}, "`params.prompt`"),
    ({"prompt": FIVE_MB}, "`params.prompt`"),
    ({"prompt": 3}, "`params.prompt`"),
    ({"prompt": "x", "maxTokens": -1}, "`params.maxTokens`"),
    ({"prompt": "x", "maxTokens": 0}, "`params.maxTokens`"),
    ({"prompt": "x", "maxTokens": 10**9}, "`params.maxTokens`"),
    ({"prompt": "x", "images": [{"imagePath": "/a.png"}] * 65}, "`params.images`"),
    ({"messages": []}, "`params.messages`"),
    ({"messages": [{"role": "system", "content": "x"}]}, "`params.messages`"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "`params.messages`"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "`params.messages[0].role`"),
    ({"messages": [{"role": "user"}]}, "`params.messages[0]`"),
    ({"messages": [{"role": "q" * 100_000, "content": "x"}]}, "Invalid enum value"),
    ({"messages": [{"role": "system", "content": PICTURE}, USER]}, "`params.messages[0].content`"),
    ({"messages": [USER, {"role": "assistant", "content": PICTURE}, USER]}, "`params.messages[1].content`"),
    ({"messages": [{"role": "user", "content": ""}]}, "`params.messages[0].content`"),
    ({"messages": [{"role": "user", "content": []}]}, "`params.messages[0].content`"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`params.messages[0].content[0]`"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "`params.messages[0].content[0].type`"),
    ({"messages": [{"role": "user", "content": FIVE_MB}]}, "`params.messages[0].content`"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": FIVE_MB}]}]},
        "`params.messages[0].content[0].text`",
    ),
    ({"messages": [USER] * (MAX_MESSAGES + 1)}, "`params.messages`"),
]
# What is well-formed and cannot be done has a code of its own.
OTHER_CODES: list[tuple[str, dict[str, Any], str, str]] = [
    ("generate", {"prompt": "x", "schema": {"description": "y" * MAX_SCHEMA_BYTES}}, "schema_invalid", "params.schema"),
    ("generate", {"prompt": "x", "schema": {"type": "nonsense"}}, "schema_invalid", "schema"),
    ("generate", {"prompt": "x", "regex": "("}, "schema_invalid", "pattern"),
    ("generate", {"prompt": "x", "regex": "b" * 16_000 + "{2}"}, "schema_invalid", "matches"),
    ("generate", {"prompt": "word " * (MAX_PROMPT_CHARS // 5)}, "context_length_exceeded", "tokens; the context"),
    ("generate", {"prompt": "x", "model": "m" * 100_000}, "model_not_loaded", "it serves fake"),
    ("count_tokens", {"prompt": "x", "model": "other"}, "model_not_loaded", "it serves fake"),
    ("generate", {"prompt": "x", "images": [{"imagePath": "a.png"}]}, "image_path_relative", "a.png"),
    ("generate", {"prompt": "x", "images": [{"imagePath": "/" + "a" * 100_000}]}, "image", "aaa"),
    ("generate", {"messages": [{"role": "user", "content": PICTURE}]}, "image_not_found", "/nowhere/a.png"),
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all of them: what one request does to it, the next would show."""
    daemon = Daemon()
    try:
        yield daemon.wait_ready()
        eventually(lambda: daemon.status()["queue"]["jobs"] == 0)
        assert "Traceback" not in (daemon.folder / "log").read_text()
    finally:
        daemon.close()


def refused(daemon: Daemon, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The error line of a request; the same connection and another one answer the next."""
    with daemon.connect() as connection:
        (line,) = connection.ask(1, method, **params)
        assert connection.ask(2, "generate", prompt="Next.", maxTokens=2)[-1]["done"]
    assert daemon.ask("ping")[0]["result"]["state"] == "ready"
    assert (line["id"], line["done"], line["retryable"]) == (1, True, False)
    assert len(json.dumps(line)) <= MAX_LINE_BYTES
    return line


@pytest.mark.parametrize(("params", "named"), SAMPLING)
def test_sampling(daemon: Daemon, params: dict[str, Any], named: str) -> None:
    line = refused(daemon, "generate", {"prompt": "x", **params})
    assert line["code"] == "invalid_params"
    assert named in line["error"]


@pytest.mark.parametrize("method", ["generate", "count_tokens"])
@pytest.mark.parametrize(("params", "named"), PROMPTS)
def test_prompts(daemon: Daemon, method: str, params: dict[str, Any], named: str) -> None:
    line = refused(daemon, method, params)
    assert line["code"] == "invalid_params"
    assert named in line["error"]


@pytest.mark.parametrize(("method", "params", "code", "named"), OTHER_CODES)
def test_well_formed_and_impossible(daemon: Daemon, method: str, params: dict[str, Any], code: str, named: str) -> None:
    line = refused(daemon, method, params)
    assert line["code"].startswith(code)
    assert named in line["error"]


def test_not_a_number_is_not_json(daemon: Daemon) -> None:
    with daemon.connect() as connection:
        connection.send(1, "generate", prompt="x", temperature=math.nan)
        assert connection.line()["code"] == "parse_error"
        assert connection.ask(2, "ping")[0]["result"]["state"] == "ready"


@pytest.mark.parametrize("token", ["<|im_start|>system\n", "<|image_pad|>", "</think>", "\u2028", "\0", "\ud800"])
def test_strange_text_is_text(daemon: Daemon, token: str) -> None:
    last = daemon.ask("generate", prompt=f"a{token}b", maxTokens=20)[-1]
    if token == "\ud800":  # no text: JSON's own escape of half a character
        assert last["code"] == "parse_error"
    else:
        assert last["finishReason"] in ("stop", "length")
