"""Whatever answers at the socket, the caller gets a typed error, and the next call starts afresh."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import vlmd
from tests.support.fake_server import Conversation, Dialogue, FakeServer, hello_result, hello_then, obedient

Serve = Callable[..., FakeServer]


def attach(folder: Path) -> vlmd.Client:
    return vlmd.Client(socket=folder / "s", start=False, timeouts=vlmd.Timeouts(connect_s=0.3))


def sends(data: bytes, *, stalls: bool = False) -> Dialogue:
    def play(talk: Conversation) -> None:
        next(talk.lines())
        talk.send(data)
        if stalls:
            talk.stall()

    return play


def refuses(code: str) -> Dialogue:
    return lambda talk: talk.refuse(next(talk.lines()), code)


HELLO = json.dumps({"id": 1, "result": hello_result(), "done": True}).encode()
OTHER = json.dumps({"id": 1, "result": hello_result(protocol=2), "done": True}).encode() + b"\n"
HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize(
    ("dialogue", "error", "match"),
    [
        (sends(b"garbage\n"), vlmd.ProtocolError, "garbage"),
        (sends(HTTP), vlmd.ProtocolError, "HTTP/1.1"),
        (sends(b"\x00\xff\n"), vlmd.ProtocolError, "no daemon sends"),
        (sends(b'{"id":1,"result":{},"done":true}\n'), vlmd.ProtocolError, "no vlmd daemon"),
        (sends(OTHER), vlmd.ProtocolError, "speaks protocol 2"),
        (refuses("unsupported_protocol"), vlmd.ProtocolError, "refused"),
        (sends(b""), vlmd.ConnectionLostError, "closed the connection"),
        (sends(HELLO[:50]), vlmd.ConnectionLostError, "closed the connection"),
        (sends(HELLO[:50], stalls=True), vlmd.DeadlineError, "did not answer hello"),
        (sends(b"", stalls=True), vlmd.DeadlineError, "did not answer hello"),
        (sends(b" " * (33 << 20)), vlmd.ProtocolError, "over 33554432 bytes"),
    ],
)
def test_a_strange_greeting(
    serve: Serve, folder: Path, dialogue: Dialogue, error: type[vlmd.VlmdError], match: str
) -> None:
    server = serve(dialogue, obedient())
    with attach(folder) as client:
        with pytest.raises(error, match=match) as caught:
            client.ping()
        if isinstance(caught.value, vlmd.DeadlineError):
            assert caught.value.phase == "connect"
        assert client.ping().state == "ready"
    assert server.connections == 2


@pytest.mark.parametrize("data", [b"garbage\n", b'{"id":2,"batch":1,"results":[],"done":true}\n'])
def test_a_strange_answer_to_describe(serve: Serve, folder: Path, data: bytes) -> None:
    serve(hello_then(sends(data, stalls=True)), obedient())
    with attach(folder) as client:
        with pytest.raises(vlmd.ProtocolError):
            client.describe_all(["/a.png"])
        assert client.ping().state == "ready"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid_params", vlmd.InvalidRequestError),
        ("model_not_loaded", vlmd.ModelError),
        ("shutting_down", vlmd.ShuttingDownError),
        ("internal", vlmd.InternalError),
        ("of_tomorrow", vlmd.RequestError),
    ],
)
def test_codes_become_exceptions(serve: Serve, folder: Path, code: str, error: type[vlmd.RequestError]) -> None:
    serve(hello_then(refuses(code)))
    with attach(folder) as client, pytest.raises(error) as caught:
        client.describe_all(["/a.png"])
    assert type(caught.value) is error
    assert caught.value.code == code


def test_nobody_there(folder: Path) -> None:
    with attach(folder) as client, pytest.raises(vlmd.ConnectError, match="no socket"):
        client.ping()


def test_a_stale_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    with attach(folder) as client, pytest.raises(vlmd.ConnectError, match="ECONNREFUSED"):
        client.ping()


def test_a_full_accept_queue_is_a_deadline(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(0)
        fillers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(str(folder / "s"))
        with attach(folder) as client, pytest.raises(vlmd.DeadlineError) as caught:
            client.ping()
        for filler in fillers:
            filler.close()
    assert caught.value.phase == "connect"


def test_a_file_at_the_path(folder: Path) -> None:
    (folder / "s").write_text("precious")
    for client in (attach(folder), vlmd.Client(socket=folder / "s", command="false")):
        with client, pytest.raises(vlmd.UnsafeSocketError, match="not a socket"):
            client.ping()
    assert (folder / "s").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_socket_of_somebody_else(serve: Serve, folder: Path) -> None:
    server = serve()
    os.chown(folder / "s", 12345, -1)
    with attach(folder) as client, pytest.raises(vlmd.UnsafeSocketError, match="belongs to user 12345"):
        client.ping()
    assert server.connections == 0


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(vlmd.UnsafeSocketError, match="at most 102"):
        vlmd.Client(socket="/tmp/" + "x" * 100)
