"""One `describe` call, sans IO: frames to requests of bounded size, their lines to numbered batches in order.

A request carries a *chunk* of frames. What of a chunk is not delivered can be asked for again, on another connection
and of another daemon; numbers and progress are the job's own and go on.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Generic

import msgspec

from vlmd._results import Batch, Frame, Progress
from vlmd._schema import Schema
from vlmd._session import Batched
from vlmd._types import Value_co
from vlmd_protocol.errors import InvalidRequestError, ProtocolError
from vlmd_protocol.limits import MAX_BATCH_SIZE
from vlmd_protocol.messages import DescribeParams, FrameResult, ImageRef

# Frames of one request: enough to keep an engine busy while the next is asked for, few enough that an endless
# iterable is read only a little ahead of its reader.
CHUNK_FRAMES = 256

# Requests of one job that are under way: the engine does not idle between two chunks.
MAX_CHUNKS = 2

# Names of series, of which no two jobs of a connection have the same.
_SERIES = itertools.count(1)


@dataclass(slots=True)
class _Chunk:
    """Frames of one request. `asked` are the ones of the running request, a suffix of `frames` after a resumption."""

    frames: list[ImageRef]
    request_id: int | None = None
    received: int = 0
    ready: deque[list[FrameResult]] = field(default_factory=deque)

    @property
    def complete(self) -> bool:
        return self.received == len(self.frames)


class DescribeJob(Generic[Value_co]):
    """State of one job. `options` is a `DescribeParams` whose images are replaced chunk by chunk.

    Attributes:
        live: the caller's iterable is slow: to ask it for a frame takes long.
        batch_size: frames of a batch.
        chunk_frames: frames of a request, at most.

    Raises:
        InvalidRequestError: the batch size is out of bounds.
    """

    def __init__(self, options: DescribeParams, total: int | None, schema: Schema[Value_co] | None = None) -> None:
        if not 1 <= options.batch_size <= MAX_BATCH_SIZE:
            message = f"batch_size is {options.batch_size}; it must be from 1 to {MAX_BATCH_SIZE}."
            raise InvalidRequestError(message, code="invalid_params")
        self._options = options
        self._schema = schema
        self._total = total
        self._chunks: deque[_Chunk] = deque()
        self._taken = 0
        self._delivered = 0
        self._batches = 0
        self._input_ended = False
        self._more_known = False
        self._series = next(_SERIES)
        self.live = False
        self.batch_size = options.batch_size
        # A multiple of the batch size, so that batches do not straddle requests; two batches at least, so that one
        # can be read while the next is inferred.
        self.chunk_frames = options.batch_size * max(2, CHUNK_FRAMES // options.batch_size)

    # --- input ------------------------------------------------------------------------------------------------

    @property
    def wants_chunk(self) -> bool:
        """Whether to take another chunk from the caller's iterable.

        Not of a live source while frames of it are under way: waiting for its next frames would delay their results.
        """
        if self._input_ended:
            return False
        if not self._chunks:
            return True
        ahead = self._taken - self._delivered
        return not self.live and len(self._chunks) < MAX_CHUNKS and ahead <= self.chunk_frames // 2

    @property
    def wants_peek(self) -> bool:
        """Whether a batch is held back until it is known if it is the last; not of a live source, for that reason."""
        return (
            not (self._input_ended or self._more_known or self.live)
            and self._is_last_known()
            and bool(self._chunks[0].ready)
        )

    def add(self, frames: list[ImageRef]) -> None:
        """Take a chunk."""
        if frames:
            self._chunks.append(_Chunk(frames))
            self._taken += len(frames)
            self._more_known = False

    def note_more(self) -> None:
        """Note that the iterable has more frames than were taken."""
        self._more_known = True

    def end_input(self) -> None:
        """Note that the iterable has no more frames."""
        self._input_ended = True
        self._total = self._taken

    # --- requests ---------------------------------------------------------------------------------------------

    def unasked(self) -> list[int]:
        """Return the positions of chunks that need a request now."""
        positions: list[int] = []
        for at, chunk in enumerate(self._chunks):
            idle = not (positions or self.under_way)
            if chunk.request_id is None and not chunk.complete and (idle or not self._follows(chunk)):
                positions.append(at)
        return positions

    def params(self, at: int) -> DescribeParams:
        """Return the request for what chunk `at` has not got."""
        chunk = self._chunks[at]
        return msgspec.structs.replace(
            self._options,
            images=chunk.frames[chunk.received :],
            series=self._series if self._in_series(chunk) else None,
        )

    def asked(self, at: int, request_id: int) -> None:
        """Note that chunk `at` was asked for."""
        self._chunks[at].request_id = request_id

    @property
    def under_way(self) -> list[int]:
        """Ids of the requests under way."""
        chunks = tuple(self._chunks)  # at once: who leaves a job looks from another thread
        return [chunk.request_id for chunk in chunks if chunk.request_id is not None]

    def receive(self, line: Batched) -> None:
        """Take a line.

        Raises:
            ProtocolError: it is not for the frames that come next.
        """
        chunk = next(chunk for chunk in self._chunks if chunk.request_id == line.request_id)
        expected = chunk.frames[chunk.received : chunk.received + len(line.results)]
        if [frame.index for frame in expected] != [result.index for result in line.results]:
            raise ProtocolError(
                f"The daemon sent results for frames {[result.index for result in line.results]} where "
                f"{[frame.index for frame in expected]} come next."
            )
        chunk.received += len(line.results)
        if line.results:
            chunk.ready.append(line.results)
        if line.done:
            chunk.request_id = None
            if not chunk.complete:
                raise ProtocolError(f"The daemon ended a job {len(chunk.frames) - chunk.received} frames early.")

    def unask(self, request_id: int | None = None) -> None:
        """Forget one request or, when the connection is lost, all of them; what they did not deliver is unasked."""
        self._series = next(_SERIES)  # what the daemon knows may be of frames that come after those asked for again
        for chunk in self._chunks:
            if request_id is None or chunk.request_id == request_id:
                chunk.request_id = None

    # --- output -----------------------------------------------------------------------------------------------

    def take(self) -> Batch[Value_co] | None:
        """Return the next batch, if it is there and it is known whether it is the last."""
        if not self._chunks or not self._chunks[0].ready or self.wants_peek:
            return None
        chunk = self._chunks[0]
        done = self._input_ended and self._is_last_known()
        results = [Frame.of(result, self._schema) for result in chunk.ready.popleft()]
        if chunk.complete and not chunk.ready:
            self._chunks.popleft()
        self._batches += 1
        self._delivered += len(results)
        progress = Progress(current=self._delivered, total=self._total)
        return Batch(batch=self._batches, results=results, progress=progress, done=done)

    @property
    def finished(self) -> bool:
        """Whether everything was delivered."""
        return self._input_ended and not self._chunks

    def _in_series(self, chunk: _Chunk) -> bool:
        """Whether the daemon is to compare a chunk's frames with those of others: there are some, and it may."""
        alone = self._input_ended and self._taken == len(chunk.frames)
        return not alone and self._options.mode == "parallel" and self._options.dedupe is not False

    def _follows(self, chunk: _Chunk) -> bool:
        """Whether a chunk waits for the one before, to be compared with it: a slow source does not fill requests."""
        return bool(self._options.dedupe) and len(chunk.frames) < self.chunk_frames

    def _is_last_known(self) -> bool:
        """Whether the next batch is the last of all frames taken so far."""
        return len(self._chunks) == 1 and self._chunks[0].complete and len(self._chunks[0].ready) == 1
