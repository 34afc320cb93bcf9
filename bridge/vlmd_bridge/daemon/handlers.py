"""What each method does. Handlers never wait: they answer at once or start a job that answers later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from vlmd_bridge import __version__, faults
from vlmd_bridge.daemon import intake
from vlmd_bridge.daemon.session import Session
from vlmd_bridge.daemon.settings import DaemonSettings
from vlmd_bridge.images.pool import ImagePool
from vlmd_bridge.jobs.comparisons import Comparisons
from vlmd_bridge.jobs.conversation import BadConversation, Conversation
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.gate import Known
from vlmd_bridge.jobs.generate import CountJob, GenerateJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.series import AllSeries
from vlmd_bridge.jobs.store import JobStore
from vlmd_bridge.jobs.work import Job
from vlmd_bridge.store.results import ResultStore
from vlmd_bridge.workers.engine import EngineWorker
from vlmd_bridge.workers.fleet import Fleet, NoEngine
from vlmd_bridge.workers.usage import memory_bytes
from vlmd_protocol import limits
from vlmd_protocol.connection import Call, error_line
from vlmd_protocol.errors import shorten
from vlmd_protocol.messages import (
    METHODS,
    CacheParams,
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
    "describe.dedupe",
    "describe.series",
    "describe.cache",
    "grammar",
    "events.model",
    "generate.stream",
)

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
        *,
        store: ResultStore,
        comparisons: Comparisons,
        series: AllSeries,
    ) -> None:
        self.sessions: set[Session] = set()
        self.draining = False
        self._settings = settings
        self._scheduler = scheduler
        self._fleet = fleet
        self._images = images
        self._log_file = log_file
        self._request_stop = request_stop
        self._store = store
        self._comparisons = comparisons
        self._series = series
        self._started_at = anyio.current_time()
        self._at_request = faults.point("daemon", "request")

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
            if self._at_request is not None:
                self._at_request()
            self._run(session, call)
        except (RequestRefused, NoEngine) as refusal:
            session.end(error_line(call.id, str(refusal), refusal.code, data=refusal.data))
        except Exception:
            # The named boundary of requests: a defect ends this request, not the daemon.
            log.exception("a defect in %s", call.method)
            message = "The daemon has a defect; its log has the details."
            session.end(error_line(call.id, message, "internal", data={"logFile": str(self._log_file)}))

    @property
    def read_bytes(self) -> int:
        """What one turn of the event loop takes of one peer."""
        return intake.read_bytes(len(self.sessions))

    def cancel(self, job: Job) -> None:
        """End a job."""
        self._scheduler.cancel(job)

    def left(self, session: Session) -> None:
        """Forget a connection that is gone."""
        self.sessions.discard(session)
        self._series.forget_client(session)

    def caught_up(self) -> None:
        """A reader is no longer behind."""
        self._scheduler.pump()

    def holds_more(self) -> None:
        """A session holds more of its peer's bytes than before."""
        intake.relieve(self.sessions)

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
            case CacheParams():
                self._cache(session, call, call.params)
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
            memory_bytes=memory_bytes(os.getpid()) or 0,
            models=self._fleet.statuses,
            queue=self._scheduler.queue_status(),
            image_processes=self._images.pids,
            frames_done=self._scheduler.frames_done,
            frames_failed=self._scheduler.frames_failed,
            faults=faults.installed().texts,
            frames_cached=self._scheduler.frames_cached,
            frames_duplicate=self._scheduler.frames_duplicate,
            cache=self._store.status(),
        )

    def _cache(self, session: Session, call: Call, params: CacheParams) -> None:
        self._store.info(lambda result: self._answer(session, call, result), clear=params.action == "clear")

    def _describe(self, session: Session, call: Call, params: DescribeParams) -> None:
        engine = self._fleet.find(params.model, needs_vision=True)
        _check_schema(params.schema)
        if params.schema is not None and params.mode == "interleaved":
            raise RequestRefused("`params.schema` needs `params.mode` to be parallel.", "invalid_params")
        if params.schema is not None and not params.grammar:
            raise RequestRefused("`params.schema` needs `params.grammar` to be true.", "invalid_params")
        if params.dedupe and params.mode == "interleaved":
            raise RequestRefused("`params.dedupe` needs `params.mode` to be parallel.", "invalid_params")
        if params.series is not None and any(image.index is None for image in params.images):
            message = "`params.series` needs an `index` with each image, of its own in the whole series."
            raise RequestRefused(message, "invalid_params")
        job = DescribeJob(call.id, params, session, session, self._known(session, engine, params))
        log.info("describe: %d frames, %s, batch size %d", job.total, params.mode, params.batch_size)
        self._submit(session, engine, job)

    def _known(self, session: Session, engine: EngineWorker, params: DescribeParams) -> Known:
        """Return where answers may be known from."""
        wanted = self._store.enabled if params.cache is None else params.cache
        store = JobStore(self._store, engine) if wanted else None
        return Known(
            store=store,
            comparisons=self._comparisons if params.dedupe else None,
            series=self._series.of(session, engine.name, params),
        )

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
        request_bytes = sum(each.connection.request_bytes for each in self.sessions)
        if (reason := intake.refusal(len(self._scheduler.jobs), request_bytes)) is not None:
            raise RequestRefused(reason, "busy", {"retryAfterMs": _RETRY_AFTER_MS})
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
