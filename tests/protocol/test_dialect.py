"""The dialect of a listener for ADR-006's adapter: its own line with ``done``, its own values for what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmd_protocol.connection import Call, ServerConnection, error_line
from vlmd_protocol.dialect import ADR, PLAIN, SEPARATE_DONE, Dialect
from vlmd_protocol.messages import BatchLine, DescribeParams, GenerateLine, Line, Progress, ResultLine, Usage

_OWN = Dialect(separate_done=True, batch_size=2, max_tokens=900, mode="interleaved")


def _batch(*, last: bool) -> BatchLine:
    progress = Progress(current=4, total=4 if last else 8)
    if last:
        return BatchLine(id=7, batch=1, results=[], partial=False, progress=progress, done=True)
    return BatchLine(id=7, batch=1, results=[], partial=True, progress=progress)


def _encoded(connection: ServerConnection, line: Line) -> list[dict[str, Any]]:
    data = connection.encode(line)
    assert data.endswith(b"\n")
    return [json.loads(part) for part in data.splitlines()]


def test_the_last_batch_is_an_ordinary_line_and_done_comes_alone() -> None:
    last, done = _encoded(ServerConnection(dialect=ADR), _batch(last=True))
    expected = {"id": 7, "batch": 1, "results": [], "partial": False, "progress": {"current": 4, "total": 4}}
    assert last == expected
    assert done == {"id": 7, "done": True}


@pytest.mark.parametrize(
    "line",
    [
        _batch(last=False),
        ResultLine(id=1, result={}),
        error_line(1, "no", "invalid_params"),
        GenerateLine(
            id=1,
            text="t",
            finish_reason="stop",
            usage=Usage(
                prompt_tokens=1, completion_tokens=1, tokens_per_s=1, time_to_first_token_s=0, peak_memory_bytes=0
            ),
        ),
    ],
)
def test_every_other_line_is_that_of_a_plain_connection(line: Line) -> None:
    assert ServerConnection(dialect=ADR).encode(line) == ServerConnection().encode(line)


def test_after_hello_the_form_is_vlmds_own() -> None:
    connection = ServerConnection(dialect=_OWN)
    connection.negotiate()
    assert connection.encode(_batch(last=True)) == ServerConnection().encode(_batch(last=True))
    (params,) = _describe(connection, {})
    assert (params.batch_size, params.max_tokens, params.mode) == (4, 2000, "parallel")


def test_both_lines_are_ascii() -> None:
    connection = ServerConnection(dialect=ADR)
    line = BatchLine(
        id="Füße \U0001f600", batch=1, results=[], partial=False, progress=Progress(current=1, total=1), done=True
    )
    data = connection.encode(line)
    assert data.isascii()
    assert [json.loads(part)["id"] for part in data.splitlines()] == [line.id] * 2


def _describe(connection: ServerConnection, given: dict[str, Any]) -> list[DescribeParams]:
    request = {"id": 1, "method": "describe_images", "params": {"images": [{"imagePath": "/a"}], **given}}
    calls = list(connection.receive(json.dumps(request).encode() + b"\n"))
    return [call.params for call in calls if isinstance(call, Call) and isinstance(call.params, DescribeParams)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (2, 900, "interleaved")),
        ({"batchSize": 4}, (4, 900, "interleaved")),
        ({"maxTokens": 2000, "mode": "parallel"}, (2, 2000, "parallel")),
        ({"batchSize": 1, "maxTokens": 1, "mode": "interleaved"}, (1, 1, "interleaved")),
    ],
)
def test_what_a_request_leaves_out_is_the_listeners(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (params,) = _describe(ServerConnection(dialect=_OWN), given)
    assert (params.batch_size, params.max_tokens, params.mode) == expected


def test_another_method_and_bad_params_are_as_ever() -> None:
    connection = ServerConnection(dialect=_OWN)
    assert [type(event) for event in connection.receive(b'{"id":1,"method":"ping"}\n')] == [Call]
    assert not _describe(connection, {"batchSize": None})


def test_only_this_dialect_has_the_capability() -> None:
    assert ADR.capabilities == (SEPARATE_DONE,)
    assert PLAIN.capabilities == ()
