"""The vectors of decode, encode and invalid against the codec and the sans-IO connections, at every split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.vectors.cases import cases
from vlmd._session import Broken, ClientSession
from vlmd._startup import Startup
from vlmd_protocol import messages
from vlmd_protocol.codec import FrameTooLarge, LineDecoder, decode_params, decode_reply, decode_request, encode_line
from vlmd_protocol.connection import Call, Refusal, ServerConnection
from vlmd_protocol.errors import ProtocolError, find_code
from vlmd_protocol.limits import MAX_FRAME_BYTES
from vlmd_protocol.messages import METHODS, NoParams, Reply, Wire
from vlmd_protocol.startup import StartupLine
from vlmd_protocol.vectors import Case, to_bytes

# A longer stream is split at so many places only.
_EVERY_SPLIT_BYTES = 2048
_SOME_SPLITS = 64


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yield `data` whole, byte by byte, and in two parts at each offset."""
    yield [data]
    if len(data) <= _EVERY_SPLIT_BYTES:
        yield [data[i : i + 1] for i in range(len(data))]
    step = 1 if len(data) <= _EVERY_SPLIT_BYTES else len(data) // _SOME_SPLITS
    for at in range(1, len(data), step):
        yield [data[:at], data[at:]]


def values(struct: Wire) -> dict[str, Any]:
    return {field: getattr(struct, field) for field in struct.__struct_fields__}


@pytest.mark.parametrize("case", cases("decode/lines"))
def test_lines(case: Case) -> None:
    for parts in splits(to_bytes(case["input"])):
        decoder = LineDecoder(case.get("max_frame_bytes", MAX_FRAME_BYTES))
        lines = [line for part in parts for line in decoder.feed(part)]
        assert lines == [to_bytes(line) for line in case["lines"]]
        assert decoder.rest() == to_bytes(case.get("rest", ""))


@pytest.mark.parametrize("case", cases("decode/requests"))
def test_requests(case: Case) -> None:
    request = decode_request(to_bytes(case["line"]))
    expected = case["request"]
    assert (request.id, request.method) == (expected["id"], expected["method"])
    assert type(request.id) is type(expected["id"])
    params = json.loads(bytes(request.params)) or {}
    assert params == expected["params"]
    if request.method in METHODS:
        decode_params(request, METHODS[request.method])


@pytest.mark.parametrize("case", cases("decode/replies"))
def test_replies(case: Case) -> None:
    line = to_bytes(case["line"])
    assert json.loads(line) == case["reply"]
    reply, expected = decode_reply(line), case["reply"]
    assert (reply.id, reply.done) == (expected.get("id"), expected.get("done", False))
    for field in msgspec.structs.fields(Reply):
        if field.encode_name in expected and field.name not in ("result", "results", "usage", "progress"):
            assert getattr(reply, field.name) == expected[field.encode_name]
    assert [result.index for result in reply.results or []] == [
        result["index"] for result in expected.get("results", [])
    ]


@pytest.mark.parametrize("case", [*cases("encode/requests"), *cases("encode/lines")])
def test_encoding(case: Case) -> None:
    fields = dict(case["fields"])
    if case["type"] == "Request":
        # As a client does: the params of a method are encoded first, by themselves.
        raw = encode_line(Holder(value=fields.pop("params", {}))).rstrip(b"\n")
        message: Wire = messages.Request(**fields, params=msgspec.json.decode(raw, type=Held).value)
    else:
        # `convert` refuses nothing that stands in these texts, lone surrogates included.
        message = msgspec.convert(fields, getattr(messages, case["type"]))
    line = encode_line(message, ascii_only=case.get("ascii", False))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert not case.get("ascii") or line.isascii()
    made = json.loads(line.decode("utf-8", "strict"))
    if case["type"] == "Request" and made.get("params") == {}:
        made.pop("params")
    assert made == case["line"]
    assert list(made) == list(case["line"])


class Holder(Wire, frozen=True, kw_only=True):
    """Gets any value past the encoder of Structs, which mends lone surrogates."""

    value: Any


class Held(Wire, frozen=True, kw_only=True):
    value: msgspec.Raw


@pytest.mark.parametrize("case", [*cases("invalid/requests"), *cases("invalid/params")])
def test_invalid_requests(case: Case) -> None:
    connection = ServerConnection()
    (refusal,) = connection.receive(to_bytes(case["line"]) + b"\n")
    assert isinstance(refusal, Refusal), refusal
    line = refusal.line
    assert (line.code, line.id, refusal.fatal) == (case["code"], case["id"], False), line.error
    code = find_code(case["code"])
    assert code is not None
    assert line.retryable is code.retryable
    assert len(line.error) < 400
    json.loads(connection.encode(line))
    (call,) = connection.receive(b'{"id":5,"method":"ping"}\n')
    assert call == Call(5, "ping", NoParams())


@pytest.mark.parametrize("case", cases("invalid/streams"))
def test_invalid_streams(case: Case) -> None:
    limit, before = case["max_frame_bytes"], [to_bytes(line) for line in case["before"]]
    for parts in splits(to_bytes(case["input"])):
        lines: list[bytes] = []
        with pytest.raises(FrameTooLarge):
            take(LineDecoder(limit), parts, lines)
        assert lines == before
        connection = ServerConnection(max_frame_bytes=limit)
        connection.negotiate()  # or the second would wait for the first
        *earlier, last = [event for part in parts for event in connection.receive(part)][: len(before) + 1]
        assert len(earlier) == len(before)
        assert isinstance(last, Refusal)
        assert (last.fatal, last.line.code, last.line.id) == (True, case["code"], None)


def take(decoder: LineDecoder, parts: list[bytes], lines: list[bytes]) -> None:
    for part in parts:
        for line in decoder.feed(part):
            lines.append(line)


@pytest.mark.parametrize("case", cases("invalid/lines"))
def test_invalid_lines(case: Case) -> None:
    session = ClientSession()
    for method in case["asked"].values():
        session.request(method, NoParams())
    events = list(session.receive(to_bytes(case["line"]) + b"\n"))
    assert len(events) == 1
    (broken,) = events
    assert isinstance(broken, Broken), broken
    assert isinstance(broken.error, ProtocolError)
    assert len(str(broken.error)) < 800
    assert session.pending == frozenset()


@pytest.mark.parametrize("case", cases("decode/startup"))
def test_startup(case: Case) -> None:
    startup = Startup()
    startup.receive(to_bytes(case["line"]) + b"\n")
    outcomes = {
        "progress": (False, False, False, False),
        "bound": (True, False, False, False),
        "ready": (True, False, True, False),
        "running": (False, True, True, False),
        "fatal": (False, False, True, True),
        "invalid": (False, False, True, True),
    }
    found = (startup.bound, startup.running, startup.over, startup.fatal is not None)
    assert found == outcomes[case["outcome"]]
    assert startup.lines == (0 if case["outcome"] == "invalid" else 1)
    if case["outcome"] == "fatal":
        assert startup.fatal is not None
        assert startup.fatal.code == json.loads(case["line"])["code"]
    if "schema" in case:
        made = msgspec.json.decode(case["line"], type=StartupLine)
        assert type(made).__name__ == case["schema"]
