"""A scripted peer on a Unix socket, for tests of clients: obeys the protocol, or breaks it in any way.

::

    with FakeServer(path, hello_then(lambda talk: talk.send(b"garbage\\n"))) as server:
        ...

Each connection is played by the next dialogue, the last one again and again. A dialogue is a function of a
`Conversation`; when it returns, the connection is closed. Standard library only.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Message = dict[str, Any]

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
                message: Message = json.loads(line)
                self.server.received.append(message)
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
        asked_to_stop: set by `shutdown`.
    """

    def __init__(self, path: Path, *dialogues: Dialogue) -> None:
        self.path = path
        self.received: list[Message] = []
        self.connections = 0
        self.closing = threading.Event()
        self.asked_to_stop = threading.Event()
        self._dialogues = dialogues or (obedient(),)
        self._talks: list[Conversation] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

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


LIMITS: Message = {
    "maxFrameBytes": 32 * 1024 * 1024,
    "maxImages": 1_000_000,
    "maxBatchSize": 256,
    "maxTokens": 131_072,
    "maxInFlight": 64,
    "maxWaitingPlain": 16,
    "maxSchemaBytes": 65_536,
}


def hello_result(**changes: Any) -> Message:
    """Return what a daemon says to `hello`."""
    result: Message = {
        "protocol": 1,
        "version": "0.0.0",
        "pid": 1,
        "state": "ready",
        "capabilities": ["describe_images"],
        "limits": LIMITS,
        "fingerprint": "fake",
        "models": [{"name": "fake", "state": "ready"}],
    }
    return result | changes


def status_result(**changes: Any) -> Message:
    """Return what a daemon says to `status`."""
    result: Message = {
        "version": "0.0.0",
        "protocol": 1,
        "pid": 1,
        "state": "ready",
        "uptimeS": 1.5,
        "socket": "",
        "logFile": None,
        "owned": False,
        "fingerprint": "fake",
        "connections": 1,
        "memoryBytes": 0,
        "models": [],
        "queue": {"jobs": 0, "queued": 0, "decoding": 0, "ready": 0, "running": 0},
        "imageProcesses": [],
        "framesDone": 0,
        "framesFailed": 0,
    }
    return result | changes


def frame_result(image: Message, at: int) -> Message:
    """Return the result of one frame, which tells which picture it is of."""
    echo = {"id": image["id"]} if "id" in image else {}
    return {
        "index": image.get("index", at),
        "timestamp": image.get("timestamp"),
        "imagePath": image["imagePath"],
        "description": f"shows {image['imagePath']}",
        "activity": "testing",
        "apps": ["pytest"],
        "topics": [],
        **echo,
    }


def batch_lines(request: Message) -> Iterator[Message]:
    """Yield the lines that answer a `describe_images`."""
    params = request["params"]
    images, size = params["images"], params.get("batchSize", 4)
    for number, start in enumerate(range(0, len(images), size), 1):
        results = [frame_result(image, start + at) for at, image in enumerate(images[start : start + size])]
        current = start + len(results)
        last = current == len(images)
        line: Message = {
            "id": request["id"],
            "batch": number,
            "results": results,
            "partial": not last,
            "progress": {"current": current, "total": len(images)},
        }
        yield line | ({"done": True} if last else {})


USAGE: Message = {
    "promptTokens": 7,
    "completionTokens": 5,
    "tokensPerS": 50.0,
    "timeToFirstTokenS": 0.1,
    "peakMemoryBytes": 1024,
}


def generate_lines(
    request: Message, text: str | None = None, *, reasoning: str = "", finish_reason: str = "stop", piece: int = 3
) -> Iterator[Message]:
    """Yield the lines that answer a `generate`: by default with an echo of its prompt, `piece` characters a line."""
    text = f"Echo: {request['params'].get('prompt')}" if text is None else text
    for at in range(0, len(reasoning), piece):
        yield {"id": request["id"], "reasoningDelta": reasoning[at : at + piece]}
    for at in range(0, len(text), piece):
        yield {"id": request["id"], "delta": text[at : at + piece]}
    thought = {"reasoning": reasoning} if reasoning else {}
    yield {"id": request["id"], "text": text, "finishReason": finish_reason, "usage": USAGE, **thought, "done": True}


def hello_then(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue that answers `hello` and goes on with `dialogue`."""

    def play(talk: Conversation) -> None:
        talk.answer(talk.expect("hello"), **hello_result())
        dialogue(talk)

    return play


def obedient(
    *,
    before_batch: Callable[[Message], None] | None = None,
    before_delta: Callable[[Message], None] | None = None,
    hello: Message | None = None,
) -> Dialogue:
    """Return the dialogue of a daemon that does as it should.

    `before_batch` is called with each line of frames, `before_delta` with each of a generation, before it is sent; it
    may wait, or end the process.
    """

    def play(talk: Conversation) -> None:
        cancelled: set[object] = set()

        def stream(request: Message, lines: Iterator[Message], before: Callable[[Message], None] | None) -> None:
            for line in lines:
                if before is not None:
                    before(line)
                if request["id"] in cancelled:
                    talk.refuse(request, "cancelled")
                    return
                talk.line(**line)

        for request in talk.lines():
            match request["method"]:
                case "hello":
                    talk.answer(request, **(hello or hello_result()))
                case "ping":
                    talk.answer(request, state="ready", uptimeS=1.5)
                case "status":
                    talk.answer(request, **status_result())
                case "describe_images":
                    arguments = (request, batch_lines(request), before_batch)
                    threading.Thread(target=stream, args=arguments, daemon=True).start()
                case "generate":
                    arguments = (request, generate_lines(request), before_delta)
                    threading.Thread(target=stream, args=arguments, daemon=True).start()
                case "count_tokens":
                    talk.answer(request, promptTokens=7, contextTokens=100, maxTokens=50, fits=True)
                case "cancel":
                    cancelled.add(request["params"]["target"])
                    talk.answer(request, cancelled=True)
                case "shutdown":
                    talk.answer(request, state="draining")
                    talk.server.asked_to_stop.set()
                    return
                case method:
                    talk.refuse(request, "method_not_found", f"No method {method!r}.")

    return play
