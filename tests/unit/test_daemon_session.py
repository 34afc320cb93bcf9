"""The daemon's end of one connection, over a socketpair: what runs, and what no longer does."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.abc
import pytest

from vlmd_bridge.daemon.session import Session
from vlmd_bridge.jobs.work import Job
from vlmd_protocol.connection import Call, ServerConnection, error_line
from vlmd_protocol.messages import CancelParams, CancelResult, ResultLine

# Nothing here takes so long, on any machine.
LIMIT_S = 30.0

MAX_FRAME_BYTES = 1000
TOO_LONG = b"x" * (MAX_FRAME_BYTES + 1)


class Dispatcher:
    """Answers `cancel` at once; every other request is under way until it is ended."""

    read_bytes = 64 * 1024

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.session: Session | None = None

    def dispatch(self, session: Session, call: Call) -> None:
        self.session = session
        if isinstance(call.params, CancelParams):
            result = CancelResult(cancelled=session.cancel(call.params.target))
            session.end(ResultLine(id=call.id, result=result))
        else:
            self.ran.append(call.id)
            session.jobs[call.id] = cast("Job", SimpleNamespace(id=call.id))

    def cancel(self, job: Job) -> None:
        assert self.session is not None
        self.session.end(error_line(job.id, "The request was cancelled.", "cancelled"))

    def caught_up(self) -> None:
        pass

    def holds_more(self) -> None:
        pass


def _line(request_id: int, method: str = "ping", **params: Any) -> bytes:
    return json.dumps({"id": request_id, "method": method, "params": params}).encode() + b"\n"


@pytest.fixture(autouse=True)
def _one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent at once is taken before the writer's turn, however busy the machine."""
    monkeypatch.setattr("vlmd_bridge.daemon.session._TURN_S", LIMIT_S)


def _answers(dispatcher: Dispatcher, sent: bytes) -> list[tuple[Any, Any]]:
    """Return what a session says to `sent` until it ends: of each line the id, and the code or the result."""

    answers: list[bytes] = []

    async def talk() -> None:
        ends = [await anyio.abc.UNIXSocketStream.from_socket(end) for end in socket.socketpair()]
        with anyio.fail_after(LIMIT_S):
            async with ends[0] as peer, anyio.create_task_group() as tasks:
                tasks.start_soon(_serve, Session(ends[1], dispatcher), ends[1])
                await peer.send(sent)
                await peer.send_eof()
                answers.extend([data async for data in peer])

    anyio.run(talk)
    lines = [json.loads(line) for line in b"".join(answers).splitlines()]
    return [(line["id"], line.get("code", line.get("result"))) for line in lines]


async def _serve(session: Session, stream: anyio.abc.SocketStream) -> None:
    async with stream:
        session.connection = ServerConnection(max_frame_bytes=MAX_FRAME_BYTES)
        await session.run()


def test_a_request_whose_turn_has_come_can_still_be_cancelled() -> None:
    dispatcher = Dispatcher()
    sent = _line(1) + _line(2) + _line(3, "cancel", target=1) + _line(4, "cancel", target=2)
    assert _answers(dispatcher, sent) == [
        (1, "cancelled"),
        (3, {"cancelled": True}),
        (2, "cancelled"),
        (4, {"cancelled": True}),
    ]
    assert dispatcher.ran == [1]


def test_nothing_begins_after_a_line_that_is_too_long() -> None:
    dispatcher = Dispatcher()
    # The turn of the second has come when the line is found too long; the others wait, and would run as it ends.
    sent = _line(1) + _line(2) + _line(3) + _line(4) + _line(5, "cancel", target=1) + TOO_LONG
    assert _answers(dispatcher, sent) == [(1, "cancelled"), (5, {"cancelled": True}), (None, "frame_too_large")]
    assert dispatcher.ran == [1]


def test_what_runs_when_a_line_is_too_long_is_ended_and_nothing_follows_it() -> None:
    dispatcher = Dispatcher()
    assert _answers(dispatcher, _line(1) + _line(2) + TOO_LONG) == [(None, "frame_too_large"), (1, "cancelled")]
    assert dispatcher.ran == [1]
