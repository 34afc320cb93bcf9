"""The batches of one `describe` of the sync client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from vlmd._blocking import run
from vlmd._describe import DescribeRun
from vlmd._results import Batch
from vlmd._types import Value_co


class Batches(Iterator[Batch[Value_co]], Generic[Value_co]):
    """The batches of one call, in order. To leave it, by ``break``, an exception or `close`, cancels on the daemon."""

    def __init__(self, client: object, describe_run: DescribeRun[Value_co]) -> None:
        self._client = client  # a client that nobody else holds must live as long as its batches
        self._run = describe_run

    def __next__(self) -> Batch[Value_co]:
        batch = run(self._run.next())
        if batch is None:
            raise StopIteration
        return batch

    def close(self) -> None:
        """Cancel what is under way."""
        self._run.leave()

    def __enter__(self) -> Batches[Value_co]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._run.leave()
