"""A daemon whose pictures are opened and described in no time: real sockets, framing, sessions, jobs and scheduler.

What is left of a batch's time is what promise 10 is about. Run as ``python -m tests.faults.instant_engine SOCKET``; it
prints a line when it listens and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import anyio
import anyio.abc

from vlmd_bridge import record
from vlmd_bridge.daemon.listeners import Listeners
from vlmd_bridge.daemon.session import Session
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.work import Job
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.image_messages import Prepare, Prepared
from vlmd_bridge.workers.messages import Count, EngineInfo, Finished, ImageSpec, Remove, Start
from vlmd_protocol.connection import Call
from vlmd_protocol.dialect import PLAIN, Dialect
from vlmd_protocol.messages import DescribeParams, PingResult, ResultLine

_SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)
_INFO = EngineInfo(
    name="m", path="", backend="fake", model_type="fake", width=8, context_tokens=1000, weight_bytes=0,
    dtype="none", device="none", blas="none", threads=1, load_s=0, versions={}, image_spec=_SPEC,
)  # fmt: skip
_TEXT = record.format_record(
    record.Record(description="A window with an editor", activity="coding", apps=("VS Code",), topics=("source code",))
)


class InstantEngine:
    """Both ports of the scheduler, answering in the next turn of the event loop, and a session's dispatcher."""

    def __init__(self) -> None:
        self._scheduler = Scheduler(Arena(64 * 1024 * 1024), self)
        self._lane = self._scheduler.add_lane("m", self)
        self._scheduler.engine_ready(self._lane, _INFO)

    def prepare(self, request: Prepare, *, front: bool) -> None:
        picture = Prepared(
            seq=request.seq, width=32, height=32, source_width=32, source_height=32, digest=b"", prepare_s=0
        )
        _soon(lambda: self._scheduler.prepared(picture))

    def withdraw(self, seqs: Collection[int]) -> set[int]:
        return set()  # each is being opened

    def send(self, message: Start | Count | Remove) -> None:
        answer = Finished(
            seq=message.seq, text=_TEXT, finish_reason="stop", prompt_tokens=1, completion_tokens=1, prefill_s=0,
            decode_s=0,
        )  # fmt: skip
        _soon(lambda: self._scheduler.finished(self._lane, answer))

    @property
    def read_bytes(self) -> int:
        return 64 * 1024

    def dispatch(self, session: Session, call: Call) -> None:
        if not isinstance(call.params, DescribeParams):
            session.connection.negotiate()
            session.end(ResultLine(id=call.id, result=PingResult(state="ready", uptime_s=0.0)))
            return
        job = DescribeJob(call.id, call.params, session, session)
        session.jobs[job.id] = job
        self._scheduler.submit("m", job)

    def cancel(self, job: Job) -> None:
        self._scheduler.cancel(job)

    def caught_up(self) -> None:
        self._scheduler.pump()

    def holds_more(self) -> None:
        pass


def _soon(then: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(then)


async def _serve(path: Path) -> None:
    engine = InstantEngine()

    async def serve(dialect: Dialect, stream: anyio.abc.SocketStream) -> None:
        await Session(stream, engine, dialect).run()

    listeners = Listeners({path: PLAIN})
    listeners.bind(serve, lambda reason: sys.exit(reason))
    print("listening", flush=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listeners.run)
        await anyio.wait_readable(sys.stdin)
        listeners.stop()
        tasks.cancel_scope.cancel()
    listeners.close()


if __name__ == "__main__":
    anyio.run(_serve, Path(sys.argv[1]))
