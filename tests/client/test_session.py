"""The sans-IO session: however its bytes are split, the same events; whatever they are, a typed end."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_server import USAGE, batch_lines, generate_lines, hello_result
from vlmd._session import Answered, Batched, Broken, ClientSession, Event, Generated, News, Piece, Refused
from vlmd_protocol.errors import BusyError, InvalidRequestError, ProtocolError, RequestError
from vlmd_protocol.limits import MAX_FRAME_BYTES
from vlmd_protocol.messages import DescribeParams, ImageRef, NoParams


def line(**message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def session(requests: int = 4) -> ClientSession:
    made = ClientSession(max_frame_bytes=4096)
    for _ in range(requests):
        made.request("ping", NoParams())
    return made


def dialogue() -> bytes:
    images = [{"imagePath": f"/tmp/ü{i}\u2028.png", "index": i} for i in range(5)]
    batches = batch_lines({"id": 2, "params": {"images": images, "batchSize": 2}})
    generation = generate_lines({"id": 4, "params": {}}, "Grüße, 世界 👩‍👩‍👧", reasoning="Hm\u2028.", piece=8)
    return b"".join(
        [
            line(event="model", model="m", state="loading", stage="weights", fraction=0.25),
            line(id=1, result=hello_result(), done=True),
            *(line(**batch) for batch in batches),
            b"\n",
            *(line(**piece) for piece in generation),
            line(id=3, error="full", code="busy", retryable=True, data={"retryAfterMs": 500}, done=True),
            line(event="draining"),
        ]
    )


def shape(event: Event) -> object:
    """Compare errors by what they say; exceptions have no equality."""
    if isinstance(event, Refused | Broken):
        return type(event).__name__, type(event.error), str(event.error)
    if isinstance(event, Answered):
        return event.request_id, bytes(event.reply.result)
    return event


DIALOGUE = dialogue()
WHOLE = [shape(event) for event in session().receive(DIALOGUE)]


def test_the_events_of_a_dialogue() -> None:
    made = session()
    events = list(made.receive(DIALOGUE))
    assert [type(event) for event in events] == [
        *(News, Answered, Batched, Batched, Batched),
        *(Piece, Piece, Piece, Generated),
        *(Refused, News),
    ]
    assert isinstance(events[0], News)
    assert events[0].is_load_progress
    assert [event.done for event in events if isinstance(event, Batched)] == [False, False, True]
    pieces = [event for event in events if isinstance(event, Piece)]
    assert [(piece.text, piece.reasoning) for piece in pieces][:2] == [("", "Hm\u2028."), ("Grüße, 世", "")]
    end = events[8]
    assert isinstance(end, Generated)
    assert end.text == "".join(piece.text for piece in pieces)
    refused = events[9]
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, BusyError)
    assert refused.error.retry_after_s == 0.5
    assert not made.pending


@given(st.lists(st.integers(0, len(DIALOGUE)), max_size=20))
def test_every_split_gives_the_same_events(cuts: list[int]) -> None:
    made = session()
    edges = [0, *sorted(cuts), len(DIALOGUE)]
    events = [event for start, end in itertools.pairwise(edges) for event in made.receive(DIALOGUE[start:end])]
    assert [shape(event) for event in events] == WHOLE


def test_byte_by_byte_gives_the_same_events() -> None:
    made = session()
    events = [event for at in range(len(DIALOGUE)) for event in made.receive(DIALOGUE[at : at + 1])]
    assert [shape(event) for event in events] == WHOLE


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_end_in_events(data: bytes, cut: int) -> None:
    made = session()
    events = [*made.receive(data[:cut]), *made.receive(data[cut:]), *made.receive(b"\n")]
    assert sum(isinstance(event, Broken) for event in events) <= 1


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"x" * 5000,
        line(id=99, result={}, done=True),
        line(id="mine", result={}, done=True),
        line(id=True, result={}, done=True),
        line(result={}, done=True),
        line(id=1, done=True),
        line(id=1, result={}),
        line(id=1, batch=1, results="none", done=True),
        line(id=1, delta="x", done=True),
        line(id=1, delta=3),
        line(id=1, text="x", done=True),
        line(id=1, text="x", finishReason=3, usage=USAGE, done=True),
    ],
)
def test_what_no_daemon_sends_breaks_the_session_once(sent: bytes) -> None:
    made = session()
    (event,) = made.receive(sent)
    assert isinstance(event, Broken)
    assert isinstance(event.error, ProtocolError)
    assert len(str(event.error)) < 400
    assert not made.pending
    assert not list(made.receive(line(id=1, result={}, done=True)))


def test_an_error_without_an_id_ends_everything_with_its_code() -> None:
    (event,) = session().receive(line(id=None, error="too large", code="frame_too_large", done=True))
    assert isinstance(event, Broken)
    assert isinstance(event.error, InvalidRequestError)
    assert event.error.code == "frame_too_large"


def test_a_code_of_a_newer_daemon_is_a_request_error() -> None:
    (event,) = session().receive(line(id=1, error="no", code="from_the_future", done=True))
    assert isinstance(event, Refused)
    assert type(event.error) is RequestError
    assert event.error.code == "from_the_future"


def test_lines_of_a_cancelled_request_are_dropped() -> None:
    made = ClientSession()
    images = [ImageRef(image_path="/a.png", index=0)]
    request_id, _ = made.request("describe_images", DescribeParams(images=images))
    cancel = json.loads(made.cancel(request_id))
    assert cancel["method"] == "cancel"
    assert cancel["params"] == {"target": request_id}
    assert made.cancel(request_id) == b""
    late = line(id=request_id, delta="x") + line(id=request_id, error="cancelled", code="cancelled", done=True)
    answer = line(id=cancel["id"], result={"cancelled": True}, done=True)
    assert not list(made.receive(late + answer))


def test_a_path_that_is_no_utf8_is_sent_as_json() -> None:
    made = ClientSession()
    images = [ImageRef(image_path="/caf\udce9.png", index=0)]
    assert json.loads(made.request("describe_images", DescribeParams(images=images))[1])["id"] == 1


def test_a_request_of_the_most_bytes_is_made_and_one_of_more_is_not() -> None:
    made = ClientSession()
    images = [ImageRef(image_path="/a.png", index=0)]
    spare = MAX_FRAME_BYTES + 1 - len(ClientSession().request("describe_images", params_with(images, 0))[1])
    with pytest.raises(InvalidRequestError, match=f"has {MAX_FRAME_BYTES + 1} bytes; the daemon takes") as caught:
        made.request("describe_images", params_with(images, spare + 1))
    assert caught.value.code == "frame_too_large"
    assert not made.pending
    request_id, longest = made.request("describe_images", params_with(images, spare))
    assert (request_id, len(longest)) == (1, MAX_FRAME_BYTES + 1)


def params_with(images: list[ImageRef], prompt_chars: int) -> DescribeParams:
    return DescribeParams(images=images, prompt="p" * prompt_chars)
