"""Shows a text as it is generated: for people, or as JSON lines."""

from __future__ import annotations

import os
import sys
from typing import Any, Final, Protocol

import msgspec

from vlmd import Delta, GenerateResult
from vlmd_bridge.cli.printable import without_controls

_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"


class TextView(Protocol):
    """Where the pieces and the end go."""

    def show(self, delta: Delta) -> None:
        """Show a piece, at once."""

    def end(self, result: GenerateResult[Any]) -> None:
        """Show the end."""

    def stop(self) -> None:
        """Leave the terminal tidy where there is no end."""


class PlainText:
    """The text and a line feed on standard output; the model's thinking on stderr, dimmed, where that is a terminal."""

    def __init__(self) -> None:
        self._shows_thinking = sys.stderr.isatty()
        self._dims = self._shows_thinking and not os.environ.get("NO_COLOR")
        self._terminal = sys.stdout.isatty()
        self._thinking = False
        self._begun = False

    def show(self, delta: Delta) -> None:
        """Print a piece."""
        if delta.reasoning and self._shows_thinking:
            if not self._thinking:
                self._thinking = True
                sys.stderr.write(_DIM if self._dims else "")
            sys.stderr.write(without_controls(delta.reasoning))
            sys.stderr.flush()
        if delta.text:
            self._end_thinking()
            self._begun = True
            # Bytes for a pipe are the model's own; a terminal would act on some of them.
            sys.stdout.write(without_controls(delta.text) if self._terminal else delta.text)
            sys.stdout.flush()

    def end(self, result: GenerateResult[Any]) -> None:
        """Print the final line feed, and on stderr whether the text was cut off."""
        self._end_thinking()
        print(flush=True)
        if result.finish_reason == "length":
            tokens = result.usage.completion_tokens
            print(f"vlmd: cut off after {tokens} tokens; --max-tokens N allows more", file=sys.stderr)

    def stop(self) -> None:
        """End the line that was begun on a terminal."""
        self._end_thinking()
        if self._begun and self._terminal:
            print(flush=True)

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            sys.stderr.write(f"{_PLAIN if self._dims else ''}\n")
            sys.stderr.flush()


class JsonLines:
    """The lines of the protocol without their id: a `delta` or `reasoningDelta` each, then the end."""

    def show(self, delta: Delta) -> None:
        """Print a piece."""
        if delta.reasoning:
            _print({"reasoningDelta": delta.reasoning})
        if delta.text:
            _print({"delta": delta.text})

    def end(self, result: GenerateResult[Any]) -> None:
        """Print the end: with a schema also the `value`, or as `error` and `code` why there is none."""
        line: dict[str, Any] = {"text": result.text, "finishReason": result.finish_reason, "usage": result.usage}
        if result.reasoning is not None:
            line["reasoning"] = result.reasoning
        if result.value is not None:
            line["value"] = result.value
        if result.value_error is not None:
            line |= {"error": result.value_error, "code": value_code(result)}
        _print(line | {"done": True})

    def stop(self) -> None:
        """The error's own line follows."""


def value_code(result: GenerateResult[Any]) -> str:
    """Return the code of a result without a value."""
    return "truncated" if result.finish_reason == "length" else "unparsed"


def _print(line: dict[str, Any]) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)
