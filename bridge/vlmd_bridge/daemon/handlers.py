"""What each method does. Handlers never wait: they answer at once or start a job that answers later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil

from vlmd_bridge import __version__
from vlmd_bridge.daemon.session import Session
from vlmd_bridge.daemon.settings import DaemonSettings
from vlmd_bridge.images.pool import ImagePool
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.work import Job
from vlmd_bridge.workers.engine import EngineWorker
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
    HelloParams,
    HelloResult,
    Limits,
    NoParams,
    PingResult,
    ResultLine,
    ShutdownResult,
    StatusResult,
    Wire,
)

log = logging.getLogger("vlmd.handlers")

# Names of what a client may rely on beyond the methods themselves.
_CAPABILITIES = ("describe.parallel", "describe.interleaved", "describe.schema", "grammar", "events.model")

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
        images: ImagePool,
        log_file: Path | None,
        request_stop: Callable[[str], None],
    ) -> None:
        self.sessions: set[Session] = set()
        self.engines: dict[str, EngineWorker] = {}
        self.draining = False
        self._settings = settings
        self._scheduler = scheduler
        self._images = images
        self._log_file = log_file
        self._request_stop = request_stop
        self._started_at = anyio.current_time()
        self._process = psutil.Process()

    @property
    def state(self) -> DaemonState:
        """The daemon's state: that of its models, unless it drains."""
        states = {engine.state for engine in self.engines.values()}
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
        except RequestRefused as refusal:
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
            capabilities=[*METHODS, *_CAPABILITIES],
            limits=_LIMITS,
            fingerprint=self._settings.fingerprint,
            models=[engine.status() for engine in self.engines.values()],
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
            models=[engine.status() for engine in self.engines.values()],
            queue=self._scheduler.queue_status(),
            image_processes=self._images.pids,
            frames_done=self._scheduler.frames_done,
            frames_failed=self._scheduler.frames_failed,
        )

    def _describe(self, session: Session, call: Call, params: DescribeParams) -> None:
        engine = self._engine(params.model)
        if self.draining:
            raise RequestRefused("The daemon is shutting down.", "shutting_down", {"retryAfterMs": _RETRY_AFTER_MS})
        if len(self._scheduler.jobs) >= _MAX_JOBS:
            raise RequestRefused(f"{_MAX_JOBS} requests are under way.", "busy", {"retryAfterMs": _RETRY_AFTER_MS})
        if params.schema is not None and params.mode == "interleaved":
            raise RequestRefused("`params.schema` needs `params.mode` to be parallel.", "invalid_params")
        if params.schema is not None and not params.grammar:
            raise RequestRefused("`params.schema` needs `params.grammar` to be true.", "invalid_params")
        job = DescribeJob(call.id, params, session, session)
        session.jobs[call.id] = job
        log.info("describe: %d frames, %s, batch size %d", job.total, params.mode, params.batch_size)
        self._scheduler.submit(engine.name, job)

    def _engine(self, model: str | None) -> EngineWorker:
        """Return the engine a request asks for; never another one."""
        engines = self.engines.values()
        engine = next((engine for engine in engines if model is None or model in engine.names), None)
        if engine is None:
            assert model is not None
            raise RequestRefused(
                f"This daemon does not serve the model {shorten(model)!r}; it serves {', '.join(self.engines)}.",
                "model_not_loaded",
                {"models": list(self.engines)},
            )
        status = engine.status()
        if engine.state == "failed":
            raise RequestRefused(status.error or "The model failed to load.", status.code or "model_load_failed")
        if engine.state == "unavailable":
            raise RequestRefused(
                f"The engine of {engine.name} crashed too often and rests.",
                "engine_unavailable",
                {"retryAfterMs": engine.retry_after_ms},
            )
        return engine

    def _uptime_s(self) -> float:
        return round(anyio.current_time() - self._started_at, 3)
