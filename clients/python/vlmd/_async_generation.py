"""One `generate` of the async client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic

from vlmd._generate import GenerateRun
from vlmd._results import Delta, GenerateResult
from vlmd._types import Value_co


class AsyncGeneration(AsyncIterator[str], Generic[Value_co]):
    """A text as it is generated: iterating yields its pieces, which together are the whole text.

    Nothing is asked before the first piece or the whole is. To leave it, by ``break``, cancellation or `aclose`,
    cancels on the daemon.
    """

    def __init__(self, generate_run: GenerateRun[Value_co]) -> None:
        self._run = generate_run

    async def __anext__(self) -> str:
        text = await self._run.next_text()
        if text is None:
            raise StopAsyncIteration
        return text

    def deltas(self) -> AsyncDeltas:
        """Return an iterator over the pieces of the model's thinking too."""
        return AsyncDeltas(self, self._run)

    async def text(self) -> str:
        """Wait for the end and return the whole text, what was iterated over included.

        Raises:
            VlmdError: the generation failed, or was left before its end; `text_so_far` has what came.
        """
        return (await self.finish()).text

    async def value(self) -> Value_co:
        """Wait for the end and return the value of the `schema`'s type, None without a schema.

        Raises:
            InvalidRequestError: `max_tokens` ended the text (code ``truncated``), or it is not of the type
                (``unparsed``).
            VlmdError: the generation failed, or was left before its end.
        """
        return await self._run.value()

    async def finish(self) -> GenerateResult[Value_co]:
        """Wait for the end and return it.

        Raises:
            VlmdError: the generation failed, or was left before its end.
        """
        return await self._run.finish()

    @property
    def result(self) -> GenerateResult[Value_co] | None:
        """The end, None before it."""
        return self._run.result

    @property
    def text_so_far(self) -> str:
        """The text that came, also of a generation that failed."""
        return self._run.text_so_far

    @property
    def reasoning_so_far(self) -> str:
        """The model's thinking that came."""
        return self._run.reasoning_so_far

    async def aclose(self) -> None:
        """Cancel it, unless it has ended."""
        self._run.leave()

    async def __aenter__(self) -> AsyncGeneration[Value_co]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._run.leave()

    def __del__(self) -> None:
        self._run.leave()


class AsyncDeltas(AsyncIterator[Delta]):
    """The pieces of an `AsyncGeneration`, the model's thinking included."""

    def __init__(self, generation: AsyncGeneration[object], generate_run: GenerateRun[object]) -> None:
        self._generation = generation  # which is left when nobody holds it
        self._run = generate_run

    async def __anext__(self) -> Delta:
        delta = await self._run.next()
        if delta is None:
            raise StopAsyncIteration
        return delta
