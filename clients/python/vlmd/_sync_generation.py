"""One `generate` of the sync client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from vlmd._blocking import run
from vlmd._generate import GenerateRun
from vlmd._results import Delta, GenerateResult
from vlmd._types import Value_co


class Generation(Iterator[str], Generic[Value_co]):
    """A text as it is generated: iterating yields its pieces, which together are the whole text.

    Nothing is asked before the first piece or the whole is. To leave it, by ``break``, an exception or `close`, cancels
    on the daemon.
    """

    def __init__(self, client: object, generate_run: GenerateRun[Value_co]) -> None:
        self._client = client  # a client that nobody else holds must live as long as its texts
        self._run = generate_run

    def __next__(self) -> str:
        text = run(self._run.next_text())
        if text is None:
            raise StopIteration
        return text

    def deltas(self) -> Deltas:
        """Return an iterator over the pieces of the model's thinking too."""
        return Deltas(self, self._run)

    def text(self) -> str:
        """Wait for the end and return the whole text, what was iterated over included.

        Raises:
            VlmdError: the generation failed, or was left before its end; `text_so_far` has what came.
        """
        return self.finish().text

    def value(self) -> Value_co:
        """Wait for the end and return the value of the `schema`'s type, None without a schema.

        Raises:
            InvalidRequestError: `max_tokens` ended the text (code ``truncated``), or it is not of the type
                (``unparsed``).
            VlmdError: the generation failed, or was left before its end.
        """
        return run(self._run.value())

    def finish(self) -> GenerateResult[Value_co]:
        """Wait for the end and return it.

        Raises:
            VlmdError: the generation failed, or was left before its end.
        """
        return run(self._run.finish())

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

    def close(self) -> None:
        """Cancel it, unless it has ended."""
        self._run.leave()

    def __enter__(self) -> Generation[Value_co]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._run.leave()


class Deltas(Iterator[Delta]):
    """The pieces of a `Generation`, the model's thinking included."""

    def __init__(self, generation: Generation[object], generate_run: GenerateRun[object]) -> None:
        self._generation = generation  # which is left when nobody holds it
        self._run = generate_run

    def __next__(self) -> Delta:
        delta = run(self._run.next())
        if delta is None:
            raise StopIteration
        return delta
