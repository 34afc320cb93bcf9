"""Scripts: what the fake server does on each connection, as JSON, for tests in any language.

A script file has one JSON object a line, ``{"steps": [...]}``: the first for the first connection, and so on, the last
for all later ones. Blank lines and lines that begin with ``#`` are passed over. A step has one of these keys:

=================  =====================================================================================================
``expect``         read the client's next line, which asks for this method (``"*"`` for any); what follows answers it
``line``           send the object as a line; the text ``"${id}"`` in it becomes the id of the request that was read
``answer``         send the object as the result of the request; after ``hello`` and ``status`` it is laid over what a
                   daemon says, so that ``{}`` will do
``refuse``         send an error line: ``{"code": …, "error": …, "retryable": …, "data": …}``
``batches``        send so many lines of the `describe_images` that was read, from where the last step stopped; -1: all
``deltas``         the same of a `generate`
``bytes``          send bytes, in the form of the vectors: a text, ``{"hex": …}``, ``{"repeat": …, "times": n}``, a list
``delay_ms``       wait
``drip_ms``        send ``bytes``, which the same step has, one at a time with this pause after each
``stall``          do nothing until the client hangs up
``obey``           be an obedient daemon from here on
``close``          close the connection
``die``            end the process at once, with this exit status, as a crash would
=================  =====================================================================================================

Where the steps end the connection is closed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmd_protocol.fake_server.answers import Message, batch_lines, generate_lines, hello_result, status_result
from vlmd_protocol.fake_server.obedient import obedient
from vlmd_protocol.fake_server.server import Conversation, Dialogue
from vlmd_protocol.vectors import to_bytes

Step = dict[str, Any]


class ScriptError(ValueError):
    """A script is not what it should be."""


class _Closed(Exception):
    """The script closes the connection."""


def load_script(path: Path) -> list[Dialogue]:
    """Return the dialogues of a script file.

    Raises:
        ScriptError: the file is no script; the message has the line.
        OSError: it cannot be read.
    """
    dialogues = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip() or text.startswith("#"):
            continue
        try:
            dialogues.append(scripted(json.loads(text)["steps"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ScriptError(f"{path}, line {number}: {error!r}") from error
    if not dialogues:
        raise ScriptError(f"{path} has no dialogue")
    return dialogues


def scripted(steps: list[Step]) -> Dialogue:
    """Return the dialogue that plays `steps`.

    Raises:
        ScriptError: a step has no known key, or more than one.
    """
    for step in steps:
        _key(step)
    return lambda talk: _Playing(talk).play(steps)


class _Playing:
    """One connection's script under way."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._requests = talk.lines()
        self._request: Message = {"id": None, "method": "", "params": {}}
        self._stream: Iterator[Message] = iter(())

    def play(self, steps: list[Step]) -> None:
        for step in steps:
            key = _key(step)
            try:
                _STEPS[key](self, step)
            except _Closed:
                return

    def expect(self, step: Step) -> None:
        request = next(self._requests, None)
        if request is None:
            raise _Closed
        if step["expect"] not in ("*", request["method"]):
            # Told where a test's author looks; the client sees its connection close.
            self._talk.server.complain(f"expected {step['expect']}, got {request['method']}")
            raise _Closed
        self._request = request
        if request["method"] == "describe_images":
            self._stream = batch_lines(request)
        elif request["method"] == "generate":
            self._stream = generate_lines(request)

    def line(self, step: Step) -> None:
        self._talk.line(**_with_id(step["line"], self._request["id"]))

    def answer(self, step: Step) -> None:
        known = {"hello": hello_result, "status": status_result}.get(self._request["method"], dict)
        self._talk.answer(self._request, **{**known(), **step["answer"]})

    def refuse(self, step: Step) -> None:
        self._talk.refuse(self._request, **step["refuse"])

    def stream(self, step: Step) -> None:
        count = step[_key(step)]
        while count != 0 and (line := next(self._stream, None)) is not None:
            self._talk.line(**line)
            count -= 1

    def send(self, step: Step) -> None:
        data = to_bytes(step["bytes"])
        if "drip_ms" not in step:
            self._talk.send(data)
            return
        for at in range(len(data)):
            self._talk.send(data[at : at + 1])
            time.sleep(step["drip_ms"] / 1000)

    def delay(self, step: Step) -> None:
        time.sleep(step["delay_ms"] / 1000)

    def stall(self, _: Step) -> None:
        for _request in self._requests:
            continue

    def obey(self, _: Step) -> None:
        obedient()(self._talk)

    def close(self, _: Step) -> None:
        raise _Closed

    def die(self, step: Step) -> None:
        os._exit(int(step["die"]))


_STEPS: dict[str, Callable[[_Playing, Step], None]] = {
    "expect": _Playing.expect,
    "line": _Playing.line,
    "answer": _Playing.answer,
    "refuse": _Playing.refuse,
    "batches": _Playing.stream,
    "deltas": _Playing.stream,
    "bytes": _Playing.send,
    "delay_ms": _Playing.delay,
    "stall": _Playing.stall,
    "obey": _Playing.obey,
    "close": _Playing.close,
    "die": _Playing.die,
}


def _key(step: Step) -> str:
    keys = [key for key in step if key != "drip_ms"]
    if len(keys) != 1 or keys[0] not in _STEPS:
        raise ScriptError(f"a step has one of {', '.join(_STEPS)}, not {', '.join(keys) or 'nothing'}")
    return keys[0]


def _with_id(value: Any, request_id: Any) -> Any:
    if value == "${id}":
        return request_id
    if isinstance(value, dict):
        return {key: _with_id(item, request_id) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_id(item, request_id) for item in value]
    return value
