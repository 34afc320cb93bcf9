"""One connection, sans IO: kinds, order, limits, and one terminal line for each id."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vlmd_protocol.connection import Call, Refusal, ServerConnection
from vlmd_protocol.limits import MAX_IN_FLIGHT, MAX_WAITING_PLAIN


def _request(request_id: Any, method: str = "ping", **params: Any) -> bytes:
    return json.dumps({"id": request_id, "method": method, "params": params}).encode() + b"\n"


def _calls(events: Any) -> list[Any]:
    return [event.id for event in events if isinstance(event, Call)]


def _codes(events: Any) -> list[str]:
    return [event.line.code for event in events if isinstance(event, Refusal)]


def test_a_plain_connection_runs_one_request_at_a_time_in_order() -> None:
    connection = ServerConnection()
    assert _calls(connection.receive(_request(1) + _request(2) + _request(3))) == [1]
    assert _calls(connection.finish(1)) == [2]
    assert _calls(connection.finish(2)) == [3]
    assert _calls(connection.finish(3)) == []


def test_cancel_and_shutdown_act_at_once_on_a_plain_connection() -> None:
    connection = ServerConnection()
    list(connection.receive(_request(1)))
    events = connection.receive(_request(2, "cancel", target=1) + _request(3, "shutdown"))
    assert _calls(events) == [2, 3]


def test_a_plain_connection_lets_16_wait() -> None:
    connection = ServerConnection()
    events = list(connection.receive(b"".join(_request(i) for i in range(MAX_WAITING_PLAIN + 2))))
    assert _calls(events) == [0]
    assert _codes(events) == ["busy"]
    refusal = events[-1]
    assert isinstance(refusal, Refusal)
    assert refusal.line.id == MAX_WAITING_PLAIN + 1
    assert isinstance(refusal.line.data, dict)
    assert refusal.line.data["retryAfterMs"] > 0


def test_a_negotiated_connection_runs_many_at_once() -> None:
    connection = ServerConnection()
    connection.negotiate()
    events = list(connection.receive(b"".join(_request(i) for i in range(MAX_IN_FLIGHT + 1))))
    assert _calls(events) == list(range(MAX_IN_FLIGHT))
    assert _codes(events) == ["busy"]


def test_hello_lets_the_waiting_ones_run() -> None:
    connection = ServerConnection()
    list(connection.receive(_request(1, "hello") + _request(2) + _request(3)))
    connection.negotiate()
    assert _calls(connection.finish(1)) == [2, 3]


def test_a_duplicate_live_id_is_refused_without_ending_the_live_one() -> None:
    connection = ServerConnection()
    events = list(connection.receive(_request("a") + _request("a")))
    assert _calls(events) == ["a"]
    (refusal,) = [event for event in events if isinstance(event, Refusal)]
    assert (refusal.line.id, refusal.line.code, refusal.line.data) == (None, "duplicate_id", {"refusedId": "a"})
    list(connection.finish("a"))
    assert _calls(connection.receive(_request("a"))) == ["a"]


def test_bad_params_with_the_id_of_a_live_request_do_not_end_it_either() -> None:
    connection = ServerConnection()
    events = list(connection.receive(_request(1) + b'{"id":1,"method":"describe_images"}\n'))
    (refusal,) = [event for event in events if isinstance(event, Refusal)]
    assert (refusal.line.id, refusal.line.code) == (None, "invalid_params")


def test_an_unknown_method_is_named_and_so_are_the_known_ones() -> None:
    (event,) = ServerConnection().receive(_request(1, "describe"))
    assert isinstance(event, Refusal)
    assert event.line.code == "method_not_found"
    assert "describe_images" in event.line.error


def test_a_line_over_the_limit_is_answered_and_fatal() -> None:
    (event,) = ServerConnection(max_frame_bytes=50).receive(b"x" * 51)
    assert isinstance(event, Refusal)
    assert (event.line.code, event.fatal) == ("frame_too_large", True)


def test_a_last_line_without_line_feed_counts_at_eof() -> None:
    connection = ServerConnection()
    assert _calls(connection.receive(_request(1).rstrip())) == []
    assert _calls(connection.receive_eof()) == [1]


def test_a_waiting_call_can_be_dropped() -> None:
    connection = ServerConnection()
    list(connection.receive(_request(1) + _request(2) + _request(3)))
    assert connection.drop_waiting(2)
    assert not connection.drop_waiting(2)
    list(connection.finish(2))
    assert _calls(connection.finish(1)) == [3]


def test_all_waiting_calls_can_be_dropped() -> None:
    connection = ServerConnection()
    list(connection.receive(_request(1) + _request(2) + _request(3)))
    connection.drop_all_waiting()
    assert (connection.live, connection.unread_bytes) == (1, 0)
    assert _calls(connection.finish(1)) == []
    assert (connection.live, connection.request_bytes) == (0, 0)


class ConnectionMachine(RuleBasedStateMachine):
    """Whatever arrives in whatever order: each accepted id runs once, and plain connections run one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = ServerConnection()
        self.running: list[int] = []
        self.accepted: list[int] = []
        self.ran: list[int] = []
        self.next_id = 0

    def _started(self, ids: list[int]) -> None:
        self.running += ids
        self.ran += ids

    @rule(count=st.integers(1, 25))
    def receive(self, count: int) -> None:
        ids = range(self.next_id, self.next_id + count)
        self.next_id += count
        events = list(self.connection.receive(b"".join(map(_request, ids))))
        refused = {event.line.id for event in events if isinstance(event, Refusal)}
        self.accepted += [i for i in ids if i not in refused]
        self._started(_calls(events))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), was_hello=st.booleans())
    def finish(self, data: st.DataObject, was_hello: bool) -> None:
        done = data.draw(st.sampled_from(self.running))
        self.running.remove(done)
        if was_hello:
            self.connection.negotiate()
        self._started(_calls(self.connection.finish(done)))

    @invariant()
    def each_runs_once_and_in_order(self) -> None:
        assert self.ran == self.accepted[: len(self.ran)]
        assert self.connection.negotiated or len(self.running) <= 1
        assert self.connection.live == len(self.accepted) - (len(self.ran) - len(self.running))


TestConnectionMachine = ConnectionMachine.TestCase
TestConnectionMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
