"""Runs a `DescribeJob`: takes frames, asks, listens, and goes on after a loss. For both clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from vlmd._core import ClientCore
from vlmd._images import Source
from vlmd._job import DescribeJob
from vlmd._link import Box, Link
from vlmd._patience import Patience, left_error
from vlmd._results import Batch, Progress
from vlmd._session import Batched, Broken, Event, News, Refused
from vlmd._timeouts import Timeouts
from vlmd._types import Value_co
from vlmd_protocol.errors import (
    CancelledError_,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ProtocolError,
    StartError,
    VlmdError,
)

# How long the next request may hold up a batch that is already there, when the socket's buffer is full.
_FLUSH_AHEAD_S = 0.1


class DescribeRun(Generic[Value_co]):
    """One call of `describe`."""

    def __init__(
        self,
        core: ClientCore,
        source: Source,
        job: DescribeJob[Value_co],
        timeouts: Timeouts,
        *,
        resume: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._core = core
        self._runtime = core.runtime
        self._source = source
        self._job = job
        self._patience = Patience(
            core, timeouts, between_s=timeouts.between_batches_s, between="between_batches", resume=resume
        )
        self._on_progress = on_progress
        self._link: Link | None = None
        self._box = Box(core.runtime)
        self._over = False
        self._left = False

    async def next(self) -> Batch[Value_co] | None:
        """Return the next batch, None after the last. After an error or `leave` there is none either.

        Raises:
            VlmdError: the job cannot go on; it was cancelled on the daemon.
        """
        if self._over:
            return None
        self._core.check_open()
        try:
            batch = await self._next()
        except BaseException as error:
            left = self._left
            self.leave()  # again, if another thread or task did: it did not see what was asked after that
            if left and isinstance(error, CancelledError_):
                return None
            raise
        if batch is None or batch.done:
            self._over = True
        if batch is not None and self._on_progress is not None:
            self._on_progress(batch.progress)
        return batch

    def leave(self) -> None:
        """End the job; what is under way is cancelled on the daemon. Neither blocks nor raises."""
        self._over = self._left = True
        link = self._link  # which who waits on another thread may forget meanwhile
        if link is not None and not self._core.forked:  # in a child, a lock may be held by nobody
            for request_id in self._job.under_way:
                link.cancel(request_id)
            self._box.put(Refused(0, left_error()))  # wakes who waits on another thread; no request has this id

    async def _next(self) -> Batch[Value_co] | None:
        job = self._job
        self._patience.begin()
        while True:
            self._check_left()
            await self._pull()
            if (link := self._core.current_link()) is not None and link is self._link and link.lost is None:
                await self._ask_ahead(link)
            if (batch := job.take()) is not None:
                return batch
            if job.finished:
                return None
            if not (job.wants_peek or job.wants_chunk):
                await self._listen()

    async def _pull(self) -> None:
        """Take from the caller's iterable what the job wants of it now."""
        job, source = self._job, self._source
        began_s = self._runtime.now_s()
        if job.wants_chunk:
            job.add(await source.take(job.chunk_frames, job.batch_size))
            job.live = source.live
            if source.ended:
                job.end_input()
        if job.wants_peek:
            if await source.at_end():
                job.end_input()
            else:
                job.note_more()
        self._patience.leave_out(self._runtime.now_s() - began_s)

    async def _ask_ahead(self, link: Link) -> None:
        """Ask for the next chunk while batches of this one are still to be read."""
        try:
            self._ask(link)
        except VlmdError as error:
            if error is not link.lost:
                raise
            return  # it was lost this moment: the box says so, after what came before
        await link.flush(self._runtime.now_s() + _FLUSH_AHEAD_S)

    def _ask(self, link: Link) -> None:
        for at in self._job.unasked():
            self._check_left()
            self._job.asked(at, link.post("describe_images", self._job.params(at), self._box))
        self._check_left()  # `leave` sees what is under way, or is seen here

    def _check_left(self) -> None:
        """Go no further for nobody.

        Raises:
            CancelledError_: it was left, by another thread or task, while this one connected, slept or took frames.
        """
        if self._left:
            raise left_error()

    async def _listen(self) -> None:
        """Wait for one event of this job, on a connection that is made again if it was lost."""
        link = self._link
        lost = None if link is None else link.lost  # looked at first: after a loss, no batch is added to the box
        try:
            if (event := self._box.poll()) is not None:  # what came before a loss is kept
                await self._receive(event, self._patience.deadline()[0])
                return
            if lost is not None and self._job.under_way:
                raise await self._core.explain(lost)
            if link is None or lost is not None:
                link = await self._patience.link()
            if link is not self._link:
                # Whatever an earlier connection was asked for and did not deliver is asked for here.
                self._job.unask()
                self._box = Box(self._runtime)
                self._link = link
                self._patience.note_asked()
            self._ask(link)
            until_s, phase = self._patience.deadline()
            await link.flush(until_s)
            if (event := await self._box.next(until_s)) is None:
                raise DeadlineError(f"No frame came in time ({phase}); the job was cancelled.", phase=phase)
            await self._receive(event, until_s)
        except (ConnectionLostError, ConnectError, StartError) as error:
            await self._recover(error)

    async def _receive(self, event: Event, until_s: float) -> None:
        match event:
            case News() as news:
                if news.is_load_progress:
                    self._patience.note_loading()
            case Batched() as line:
                self._take_line(line)
                self._patience.note_piece()
            case Refused(request_id=request_id, error=error):
                self._job.unask(request_id)
                await self._patience.wait_for_room(error, until_s)
            case Broken(error):
                raise await self._core.explain(error)
            case _:
                return

    def _take_line(self, line: Batched) -> None:
        try:
            self._job.receive(line)
        except ProtocolError as error:
            if self._link is not None:
                self._link.close(error)  # a peer that mixes up frames is not talked to any further
            raise

    async def _recover(self, error: ConnectionLostError | ConnectError | StartError) -> None:
        self._job.unask()
        self._link = None
        self._box = Box(self._runtime)
        await self._patience.wait_for_restart(error)
