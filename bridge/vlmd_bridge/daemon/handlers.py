"""What each method does. Handlers never wait: they answer at once or start a job that answers later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil

from vlmd_bridge import __version__
from vlmd_bridge.daemon.session import Session
from vlmd_bridge.daemon.settings import DaemonSettings
from vlmd_bridge.images.pool import ImagePool
from vlmd_bridge.jobs.conversation import BadConversation, Conversation
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.generate import CountJob, GenerateJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.work import Job
from vlmd_bridge.workers.engine import EngineWorker
from vlmd_bridge.workers.fleet import Fleet, NoEngine
from vlmd_protocol import limits
from vlmd_protocol.connection import Call, error_line
from vlmd_protocol.errors import shorten
from vlmd_protocol.messages import (
    METHODS,
    CancelParams,
    CancelResult,
    DaemonState,
    DescribeParams,
    EventLine,
    GenerateParams,
    HelloParams,
    HelloResult,
    Limits,
    NoParams,
    PingResult,
    PromptParams,
    ResultLine,
    ShutdownResult,
    StatusResult,
    Wire,
)

log = logging.getLogger("vlmd.handlers")

# Names of what a client may rely on beyond the methods themselves.
_CAPABILITIES = (
    "describe.parallel",
    "describe.interleaved",
    "describe.schema",
    "grammar",
    "events.model",
    "generate.stream",
)

# Jobs of all connections together; beyond it the daemon is busy.
_MAX_JOBS = 256
_RETRY_AFTER_MS = 2000

_LIMITS = Limits(
    max_frame_bytes=limits.MAX_FRAME_BYTES,
    max_images=limits.MAX_IMAGES,
    max_batch_size=limits.MAX_BATCH_SIZE,
    max_tokens=limits.MAX_TOKENS,
    max_in_flight=limits.MAX_IN_FLIGHT,
    max_waiting_plain=limits.MAX_WAITING_PLAIN,
    max_schema_bytes=limits.MAX_SCHEMA_BYTES,
)


class RequestRefused(Exception):
    """A request that cannot run; becomes its error line. `code` is one of the protocol's."""

    def __init__(self, message: str, code: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Handlers:
    """The methods, and the sessions they serve."""

    def __init__(
        self,
        settings: DaemonSettings,
        scheduler: Scheduler,
        fleet: Fleet,
        images: ImagePool,
        log_file: Path | None,
        request_stop: Callable[[str], None],
    ) -> None:
        self.sessions: set[Session] = set()
        self.draining = False
        self._settings = settings
        self._scheduler = scheduler
        self._fleet = fleet
        self._images = images
        self._log_file = log_file
        self._request_stop = request_stop
        self._started_at = anyio.current_time()
        self._process = psutil.Process()

    @property
    def state(self) -> DaemonState:
        """The daemon's state: that of its models, unless it drains."""
        states = self._fleet.states
        if self.draining:
            return "draining"
        if "loading" in states:
            return "loading"
        return "failed" if states == {"failed"} else "ready"

    # --- the session's dispatcher -----------------------------------------------------------------------------

    def dispatch(self, session: Session, call: Call) -> None:
        """Run a call; exactly one terminal line follows, now or later."""
        try:
            self._run(session, call)
        except (RequestRefused, NoEngine) as refusal:
            session.end(error_line(call.id, str(refusal), refusal.code, data=refusal.data))
        except Exception:
            # The named boundary of requests: a defect ends this request, not the daemon.
            log.exception("a defect in %s", call.method)
            message = "The daemon has a defect; its log has the details."
            session.end(error_line(call.id, message, "internal", data={"logFile": str(self._log_file)}))

    def cancel(self, job: Job) -> None:
        """End a job."""
        self._scheduler.cancel(job)

    def caught_up(self) -> None:
        """A reader is no longer behind."""
        self._scheduler.pump()

    def notify(self, line: EventLine) -> None:
        """Tell every peer that said `hello`."""
        for session in self.sessions:
            session.notify(line)

    # --- methods ----------------------------------------------------------------------------------------------

    def _run(self, session: Session, call: Call) -> None:
        match call.params:
            case DescribeParams():
                self._describe(session, call, call.params)
            case GenerateParams():
                self._generate(session, call, call.params)
            case PromptParams():
                self._count(session, call, call.params)
            case CancelParams():
                cancelled = session.cancel(call.params.target)
                self._answer(session, call, CancelResult(cancelled=cancelled))
            case HelloParams():
                self._hello(session, call, call.params)
            case NoParams() if call.method == "ping":
                self._answer(session, call, PingResult(state=self.state, uptime_s=self._uptime_s()))
            case NoParams() if call.method == "status":
                self._answer(session, call, self._status())
            case NoParams() if call.method == "shutdown":
                self._answer(session, call, ShutdownResult())
                self._request_stop("shutdown was asked for")
            case _:
                raise AssertionError(call.method)

    def _answer(self, session: Session, call: Call, result: Wire) -> None:
        session.end(ResultLine(id=call.id, result=result))

    def _hello(self, session: Session, call: Call, params: HelloParams) -> None:
        if params.protocol != limits.PROTOCOL_VERSION:
            raise RequestRefused(
                f"This daemon speaks protocol {limits.PROTOCOL_VERSION}, not {params.protocol}.",
                "unsupported_protocol",
                {"supported": [limits.PROTOCOL_VERSION]},
            )
        session.connection.negotiate()
        log.info("a client said hello: %s %s", shorten(params.client.name), shorten(params.client.version))
        result = HelloResult(
            protocol=limits.PROTOCOL_VERSION,
            version=__version__,
            pid=os.getpid(),
            state=self.state,
            capabilities=[*METHODS, *_CAPABILITIES, *session.connection.dialect.capabilities],
            limits=_LIMITS,
            fingerprint=self._settings.fingerprint,
            models=self._fleet.statuses,
        )
        self._answer(session, call, result)

    def _status(self) -> StatusResult:
        return StatusResult(
            version=__version__,
            protocol=limits.PROTOCOL_VERSION,
            pid=os.getpid(),
            state=self.state,
            uptime_s=self._uptime_s(),
            socket=str(self._settings.socket_path),
            log_file=None if self._log_file is None else str(self._log_file),
            owned=self._settings.owned,
            fingerprint=self._settings.fingerprint,
            connections=len(self.sessions),
            memory_bytes=self._process.memory_info().rss,
            models=self._fleet.statuses,
            queue=self._scheduler.queue_status(),
            image_processes=self._images.pids,
            frames_done=self._scheduler.frames_done,
            frames_failed=self._scheduler.frames_failed,
        )

    def _describe(self, session: Session, call: Call, params: DescribeParams) -> None:
        engine = self._fleet.find(params.model, needs_vision=True)
        _check_schema(params.schema)
        if params.schema is not None and params.mode == "interleaved":
            raise RequestRefused("`params.schema` needs `params.mode` to be parallel.", "invalid_params")
        if params.schema is not None and not params.grammar:
            raise RequestRefused("`params.schema` needs `params.grammar` to be true.", "invalid_params")
        job = DescribeJob(call.id, params, session, session)
        log.info("describe: %d frames, %s, batch size %d", job.total, params.mode, params.batch_size)
        self._submit(session, engine, job)

    def _generate(self, session: Session, call: Call, params: GenerateParams) -> None:
        conversation = _conversation(params)
        engine = self._fleet.find(params.model, needs_vision=bool(conversation.images))
        _check_schema(params.schema)
        if params.schema is not None and params.regex is not None:
            raise RequestRefused("Give `params.schema` or `params.regex`, not both.", "invalid_params")
        if params.stop is not None and (params.schema is not None or params.regex is not None):
            raise RequestRefused(
                "`params.stop` cannot go with a schema or regex, which ends by itself.", "invalid_params"
            )
        now_s = anyio.current_time()
        job = GenerateJob(call.id, params, conversation, session, session, now_s=anyio.current_time, arrived_s=now_s)
        log.info("generate: %d messages, %d pictures", len(conversation.messages), len(conversation.images))
        self._submit(session, engine, job)

    def _count(self, session: Session, call: Call, params: PromptParams) -> None:
        conversation = _conversation(params)
        engine = self._fleet.find(params.model, needs_vision=bool(conversation.images))
        self._submit(session, engine, CountJob(call.id, params, conversation, session, session))

    def _submit(self, session: Session, engine: EngineWorker, job: Job) -> None:
        if self.draining:
            raise RequestRefused("The daemon is shutting down.", "shutting_down", {"retryAfterMs": _RETRY_AFTER_MS})
        if len(self._scheduler.jobs) >= _MAX_JOBS:
            raise RequestRefused(f"{_MAX_JOBS} requests are under way.", "busy", {"retryAfterMs": _RETRY_AFTER_MS})
        session.jobs[job.id] = job
        self._scheduler.submit(engine.name, job)

    def _uptime_s(self) -> float:
        return round(anyio.current_time() - self._started_at, 3)


def _conversation(params: PromptParams) -> Conversation:
    try:
        return Conversation.from_params(params)
    except BadConversation as error:
        raise RequestRefused(str(error), "invalid_params") from None


def _check_schema(schema: dict[str, Any] | None) -> None:
    if schema is not None and (size := len(msgspec.json.encode(schema))) > limits.MAX_SCHEMA_BYTES:
        message = f"`params.schema` has {size} bytes; at most {limits.MAX_SCHEMA_BYTES} are compiled."
        raise RequestRefused(message, "schema_invalid")
