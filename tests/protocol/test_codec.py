"""Lines: splitting at every offset, limits, and what is no JSON."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmd_protocol.codec import (
    FrameTooLarge,
    LineDecoder,
    Malformed,
    decode_params,
    decode_reply,
    decode_request,
    encode_line,
)
from vlmd_protocol.messages import DescribeParams, Id, NoParams, ResultLine

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(_TEXTS, max_size=6), st.data())
def test_lines_are_the_same_however_the_bytes_arrive(texts: list[str], data: st.DataObject) -> None:
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=False).encode() for text in texts]
    stream = b"".join(line + b"\n" for line in lines)
    decoder = LineDecoder()
    received: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert received == lines
    assert decoder.rest() == b""


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\r"])
def test_only_line_feed_splits(separator: str) -> None:
    line = json.dumps({"a": separator}, ensure_ascii=False).encode()
    assert list(LineDecoder().feed(line + b"\n")) == [line]


def test_blank_lines_are_skipped() -> None:
    assert list(LineDecoder().feed(b"\n \r\n{}\n\n")) == [b"{}"]


@pytest.mark.parametrize("chunk", [b"x" * 11, b"x" * 11 + b"\n"])
def test_a_line_over_the_limit_ends_the_stream_whether_complete_or_not(chunk: bytes) -> None:
    decoder = LineDecoder(max_frame_bytes=10)
    with pytest.raises(FrameTooLarge, match="10 bytes"):
        list(decoder.feed(chunk))


def test_lines_before_the_one_over_the_limit_are_yielded() -> None:
    decoder = LineDecoder(max_frame_bytes=10)
    lines = decoder.feed(b"{}\n" + b"x" * 11 + b"\n")
    assert next(lines) == b"{}"
    with pytest.raises(FrameTooLarge):
        next(lines)


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", "parse_error", None),
        (b"\xff\xfe", "parse_error", None),
        (b'{"id":1,"method":"\xff"}', "parse_error", None),
        (b"[" * 5000, "parse_error", None),
        (b"[]", "invalid_request", None),
        (b"17", "invalid_request", None),
        (b'{"method":"ping"}', "invalid_request", None),
        (b'{"id":7}', "invalid_request", 7),
        (b'{"id":"a","method":1}', "invalid_request", "a"),
        (b'{"id":9007199254740992,"method":"ping"}', "invalid_request", None),
        (b'{"id":true,"method":"ping"}', "invalid_request", None),
        (b'{"id":null,"method":"ping"}', "invalid_request", None),
        (b'{"id":1.5,"method":"ping"}', "invalid_request", None),
    ],
)
def test_malformed_lines_have_a_code_and_their_id_where_it_can_be_read(
    line: bytes, code: str, request_id: Id | None
) -> None:
    with pytest.raises(Malformed) as caught:
        decode_request(line)
    assert caught.value.code == code
    assert caught.value.request_id == request_id
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (b"{}", "images"),
        (b'{"images":[]}', "params.images"),
        (b'{"images":[{"imagePath":3}]}', "params.images[0].imagePath"),
        (b'{"images":[{"imagePath":"/a"}],"batchSize":0}', "params.batchSize"),
        (b'{"images":[{"imagePath":"/a"}],"batchSize":10000}', "params.batchSize"),
        (b'{"images":[{"imagePath":"/a"}],"mode":"sideways"}', "params.mode"),
        (b'{"images":[{"imagePath":"/a","timestamp":"1"}]}', "params.images[0].timestamp"),
        (b'{"images":[{"imagePath":"/a"}],"schema":[]}', "params.schema"),
        (b"[]", "object"),
    ],
)
def test_bad_params_name_their_field(params: bytes, field: str) -> None:
    request = decode_request(b'{"id":3,"method":"describe_images","params":' + params + b"}")
    with pytest.raises(Malformed) as caught:
        decode_params(request, DescribeParams)
    assert caught.value.code == "invalid_params"
    assert caught.value.request_id == 3
    # msgspec writes `[...]` for an index it does not track.
    assert field.replace("[0]", "[...]") in str(caught.value).replace("[0]", "[...]")


def test_unknown_fields_are_ignored() -> None:
    line = b'{"id":1,"method":"x","later":1,"params":{"images":[{"imagePath":"/a","later":2}],"later":[3]}}'
    params = decode_params(decode_request(line), DescribeParams)
    assert params.images[0].image_path == "/a"


@given(_TEXTS)
def test_ascii_lines_decode_to_the_same(text: str) -> None:
    line = ResultLine(id=1, result={"text": text})
    escaped = encode_line(line, ascii_only=True)
    assert escaped.isascii()
    assert json.loads(escaped) == json.loads(encode_line(line))


def test_a_lone_surrogate_becomes_a_replacement_character_not_a_broken_line() -> None:
    line = encode_line(ResultLine(id=1, result={"path": "a\udcff"}))
    assert json.loads(line)["result"]["path"] == "a\ufffd"


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    for line in LineDecoder().feed(data + b"\n"):
        try:
            request = decode_request(line)
            decode_params(request, DescribeParams)
        except Malformed:
            continue
        assert isinstance(request.params, msgspec.Raw)


def test_null_params_are_none() -> None:
    params = decode_params(decode_request(b'{"id":1,"method":"ping","params":null}'), NoParams)
    assert params == NoParams()


@pytest.mark.parametrize("where", [b'"later":"\xff"', b'"params":{"later":"\xc0\xaf"}', b'"later":{"\xed\xa0\x80":1}'])
def test_a_line_is_utf8_also_where_nobody_looks(where: bytes) -> None:
    with pytest.raises(Malformed, match="UTF-8") as caught:
        decode_request(b'{"id":1,"method":"ping",' + where + b"}")
    assert caught.value.code == "parse_error"
    with pytest.raises(Malformed, match="UTF-8"):
        decode_reply(b'{"id":1,"result":{},' + where + b"}")
