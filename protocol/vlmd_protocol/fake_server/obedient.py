"""The dialogue of a daemon that does as it should."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from vlmd_protocol.fake_server.answers import Message, batch_lines, generate_lines, hello_result, status_result
from vlmd_protocol.fake_server.server import Conversation, Dialogue


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
                case "cache":
                    talk.answer(request, state="unused", path="/results.db", enabled=False, maxBytes=1, maxAgeS=1.0)
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
