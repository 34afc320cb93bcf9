"""A scripted peer on a Unix socket: obeys the protocol, or breaks it in any way.

::

    with FakeServer(path, hello_then(lambda talk: talk.stall())) as server:
        ...

Each connection is played by the next dialogue, the last one again and again. A dialogue is a function of a
`Conversation`; when it returns, the connection is closed.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vlmd_protocol.codec import Malformed, decode_params, decode_request
from vlmd_protocol.fake_server.answers import Message
from vlmd_protocol.messages import METHODS

# Whatever a dialogue waits for comes by then, or the test is lost anyway.
_PATIENCE_S = 20.0


class Conversation:
    """One connection, seen from the server."""

    def __init__(self, sock: socket.socket, server: FakeServer) -> None:
        self.server = server
        self._socket = sock
        self._buffer = b""
        self._lock = threading.Lock()

    def lines(self) -> Iterator[Message]:
        """Yield the client's lines until it hangs up."""
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                if not line.strip():
                    continue
                try:
                    request = decode_request(line)
                    if request.method in METHODS:
                        decode_params(request, METHODS[request.method])
                except Malformed as error:
                    # It is the client that is tested: what no client may send ends the connection, and is told.
                    self.server.complain(f"the client sent {line[:80]!r}: {error}")
                    return
                message: Message = {"params": {}, **json.loads(line)}
                self.server.note(message)
                yield message
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            self._buffer += data

    def expect(self, method: str) -> Message:
        """Return the next request, which must be `method`."""
        for message in self.lines():
            assert message["method"] == method, message
            return message
        raise AssertionError(f"the client hung up instead of asking {method}")

    def send(self, data: bytes) -> None:
        """Send bytes, as they are."""
        with self._lock, suppress(OSError):
            self._socket.sendall(data)

    def line(self, **message: Any) -> None:
        """Send an object as a line."""
        self.send(json.dumps(message).encode() + b"\n")

    def answer(self, request: Message, **result: Any) -> None:
        """Send the result of a request."""
        self.line(id=request["id"], result=result, done=True)

    def refuse(self, request: Message, code: str, error: str = "refused", **more: Any) -> None:
        """Send the error line of a request."""
        self.line(id=request["id"], error=error, code=code, retryable=more.pop("retryable", False), done=True, **more)

    def stall(self) -> None:
        """Do nothing until the server is closed."""
        self.server.closing.wait(_PATIENCE_S)

    def hang_up(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


Dialogue = Callable[[Conversation], None]


class FakeServer:
    """Listens at `path` and plays dialogues.

    Attributes:
        received: every request of every connection, in order.
        connections: how many there were.
        complaints: what a script did not expect.
        asked_to_stop: set by `shutdown`.
    """

    def __init__(self, path: Path, *dialogues: Dialogue, on_request: Callable[[Message], None] | None = None) -> None:
        if not dialogues:
            # Here, since a dialogue needs what this module defines.
            from vlmd_protocol.fake_server.obedient import obedient

            dialogues = (obedient(),)
        self.path = path
        self.received: list[Message] = []
        self.complaints: list[str] = []
        self._on_request = on_request
        self.connections = 0
        self.closing = threading.Event()
        self.asked_to_stop = threading.Event()
        self._dialogues = dialogues
        self._talks: list[Conversation] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def note(self, message: Message) -> None:
        """Keep a request that came."""
        self.received.append(message)
        if self._on_request is not None:
            self._on_request(message)

    def complain(self, message: str) -> None:
        """Keep what a script did not expect, and say so."""
        self.complaints.append(message)
        print(f"fake server: {message}", file=sys.stderr, flush=True)

    def stop_at_eof(self, stream: BinaryIO) -> None:
        """Ask to stop at the end of `stream`."""

        def watch() -> None:
            while stream.read(4096):
                continue
            self.asked_to_stop.set()

        threading.Thread(target=watch, daemon=True).start()

    def methods(self) -> list[str]:
        """Return the methods asked for so far, `hello` left out."""
        return [message["method"] for message in self.received if message["method"] != "hello"]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.002)

    def drop(self) -> None:
        """Close every connection, as a daemon's end would."""
        for talk in self._talks:
            talk.hang_up()

    def close(self) -> None:
        """Stop listening and end every connection."""
        self.closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(_PATIENCE_S)
        self.drop()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            dialogue = self._dialogues[min(self.connections, len(self._dialogues) - 1)]
            self.connections += 1
            talk = Conversation(sock, self)
            self._talks.append(talk)
            thread = threading.Thread(target=self._play, args=(dialogue, talk, sock), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, dialogue: Dialogue, talk: Conversation, sock: socket.socket) -> None:
        with sock:
            dialogue(talk)
            talk.hang_up()
