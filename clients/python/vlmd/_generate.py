"""Runs one `generate`, and `count_tokens`. For both clients."""

from __future__ import annotations

from typing import Generic, cast

from vlmd._ask import Ask
from vlmd._core import ClientCore
from vlmd._patience import left_error
from vlmd._results import Delta, GenerateResult
from vlmd._schema import Mismatch, Schema
from vlmd._session import Answered, Generated, Piece
from vlmd._types import Value_co
from vlmd_protocol.codec import Malformed, decode_result
from vlmd_protocol.errors import CancelledError_, ProtocolError, VlmdError, error_from_code
from vlmd_protocol.messages import CountResult


class GenerateRun(Generic[Value_co]):
    """One call of `generate`.

    Attributes:
        result: the end, once it is there.
    """

    def __init__(self, core: ClientCore, ask: Ask, schema: Schema[Value_co] | None) -> None:
        self.result: GenerateResult[Value_co] | None = None
        self._core = core
        self._ask = ask
        self._schema = schema
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._over = False
        self._left = False
        self._error: VlmdError | None = None

    @property
    def text_so_far(self) -> str:
        """The text that came, also of a run that failed."""
        return "".join(self._text)

    @property
    def reasoning_so_far(self) -> str:
        """The thinking that came."""
        return "".join(self._reasoning)

    async def next(self) -> Delta | None:
        """Return the next piece, None after the last. After an error or `leave` there is none either.

        Raises:
            VlmdError: the generation cannot go on; it was cancelled on the daemon.
        """
        if self._over:
            return None
        self._core.check_open()
        try:
            event = await self._ask.next()
            if isinstance(event, Piece):
                return self._add(event)
            self._end(event)
        except BaseException as error:
            if self._left and isinstance(error, CancelledError_):
                return None  # it was left meanwhile, by another thread or task
            self._error = error if isinstance(error, VlmdError) else None
            self.leave()
            raise
        self._over = True
        return None

    async def next_text(self) -> str | None:
        """Return the next piece of the text itself, None after the last; raises as `next`."""
        while (delta := await self.next()) is not None:
            if delta.text:
                return delta.text
        return None

    async def finish(self) -> GenerateResult[Value_co]:
        """Wait for the end.

        Raises:
            VlmdError: it failed, or was left before its end.
        """
        while await self.next() is not None:
            continue
        if self.result is None:
            raise self._error or left_error()
        return self.result

    async def value(self) -> Value_co:
        """Wait for the end and return its value.

        Raises:
            VlmdError: as `finish`; or there is no value, with code ``truncated`` or ``unparsed``.
        """
        result = await self.finish()
        if result.value_error is not None:
            code = "truncated" if result.finish_reason == "length" else "unparsed"
            raise error_from_code(result.value_error, code)
        return cast("Value_co", result.value)  # None is the value of a call without a schema

    def leave(self) -> None:
        """End it; what is under way is cancelled on the daemon. Neither blocks nor raises."""
        self._over = self._left = True
        self._ask.leave()

    def _add(self, piece: Piece) -> Delta:
        if piece.text:
            self._text.append(piece.text)
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)
        return Delta(text=piece.text, reasoning=piece.reasoning)

    def _end(self, event: Generated | Answered) -> None:
        if not isinstance(event, Generated):
            raise self._ask.violated(ProtocolError("The daemon's answer to generate has no text."))
        if event.text != self.text_so_far:
            message = (
                f"The daemon's text of {len(event.text)} characters is not what its deltas make, "
                f"which are {len(self.text_so_far)} characters."
            )
            raise self._ask.violated(ProtocolError(message))
        value: Value_co | None = None
        value_error: str | None = None
        if self._schema is not None:
            try:
                value = self._schema.value_of_text(event.text)
            except Mismatch as error:
                value_error = str(error)
                if event.finish_reason == "length":
                    value_error = f"max_tokens ended the text before its object was complete. {error}"
        self.result = GenerateResult(
            text=event.text,
            reasoning=event.reasoning,
            finish_reason=event.finish_reason,
            usage=event.usage,
            value=value,
            value_error=value_error,
        )


async def run_count(core: ClientCore, ask: Ask) -> CountResult:
    """Return the answer to `count_tokens`.

    Raises:
        VlmdError: there is none; it was cancelled on the daemon.
    """
    core.check_open()
    try:
        event = await ask.next()
        if not isinstance(event, Answered):
            raise ask.violated(ProtocolError("The daemon's answer to count_tokens is text."))
        return decode_result(event.reply, CountResult)
    except Malformed as error:
        message = f"The daemon's answer to count_tokens is of another form: {error}"
        raise ask.violated(ProtocolError(message)) from None
    except BaseException:
        ask.leave()
        raise
