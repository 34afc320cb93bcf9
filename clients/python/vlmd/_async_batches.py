"""The batches of one `describe` of the async client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic

from vlmd._describe import DescribeRun
from vlmd._results import Batch
from vlmd._types import Value_co


class AsyncBatches(AsyncIterator[Batch[Value_co]], Generic[Value_co]):
    """The batches of one call, in order. To leave it, by ``break``, cancellation or `aclose`, cancels on the daemon."""

    def __init__(self, describe_run: DescribeRun[Value_co]) -> None:
        self._run = describe_run

    async def __anext__(self) -> Batch[Value_co]:
        batch = await self._run.next()
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """Cancel what is under way."""
        self._run.leave()

    async def __aenter__(self) -> AsyncBatches[Value_co]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._run.leave()

    def __del__(self) -> None:
        self._run.leave()
