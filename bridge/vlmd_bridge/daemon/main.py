"""The daemon: startup → main_loop → shutdown."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TypeAlias

import anyio
import anyio.abc

from vlmd_bridge import faults
from vlmd_bridge.daemon.backstop import Backstop
from vlmd_bridge.daemon.election import LostElection, sweep
from vlmd_bridge.daemon.handlers import Handlers
from vlmd_bridge.daemon.intake import MAX_CONNECTIONS
from vlmd_bridge.daemon.listeners import Listeners, private_leftovers
from vlmd_bridge.daemon.ready import ReadyChannel
from vlmd_bridge.daemon.session import Session
from vlmd_bridge.daemon.settings import DaemonSettings
from vlmd_bridge.daemon.watches import watch_age, watch_idle, watch_owner, watch_signals
from vlmd_bridge.images.pool import ImagePool, default_count
from vlmd_bridge.jobs.comparisons import Comparisons
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.series import AllSeries
from vlmd_bridge.logs import setup_logging
from vlmd_bridge.machine import cores
from vlmd_bridge.models.errors import ModelError
from vlmd_bridge.models.names import ResolvedModel, resolve_model
from vlmd_bridge.store.results import ResultStore
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.engine import EngineWorker, Supervision
from vlmd_bridge.workers.fleet import Fleet
from vlmd_bridge.workers.image_messages import ConfigureImages
from vlmd_bridge.workers.messages import ConfigureEngine
from vlmd_protocol.connection import error_line
from vlmd_protocol.dialect import Dialect
from vlmd_protocol.errors import DaemonError, StartError
from vlmd_protocol.messages import EventLine
from vlmd_protocol.paths import socket_folder

log = logging.getLogger("vlmd.daemon")

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_MODEL = 4

# The lines that end cancelled requests are small; a reader that takes none of them by then has stalled.
_LAST_LINES_S = 1.0

# What to do while another daemon holds the path: True to try again, False to end. Blocks.
StandBy: TypeAlias = Callable[[LostElection, ReadyChannel], bool]


def run(settings: DaemonSettings, stand_by: StandBy | None = None, backstop: Backstop | None = None) -> int:
    """Serve until told to stop; return the exit status. Blocks."""
    if settings.owned and backstop is None:
        backstop = Backstop(settings.owner_pid or os.getppid())
    ready = ReadyChannel(settings.ready_fd)
    try:
        while True:
            try:
                with Lifetime(settings, ready, backstop) as lifetime:
                    return anyio.run(lifetime.serve)
            except LostElection as lost:
                if stand_by is not None and stand_by(lost, ready):
                    continue
                if stand_by is None and lost.path != settings.socket_path:
                    # Who asked for two sockets would find one of them answered by a stranger.
                    raise StartError(f"{lost} Stop it, or choose another path.") from None
                ready.end("running", socket=str(lost.path), pid=lost.pid)
                return EXIT_OK
    except ModelError as error:
        log.error("%s", error)
        ready.end("fatal", error=str(error), code=error.code)
        return EXIT_MODEL
    except (DaemonError, OSError) as error:
        code = error.code if isinstance(error, DaemonError) else "start_failed"
        log.error("%s", error)
        ready.end("fatal", error=str(error), code=code)
        return EXIT_USAGE


class Lifetime:
    """One daemon from its election to its last unlink."""

    def __init__(self, settings: DaemonSettings, ready: ReadyChannel, backstop: Backstop | None = None) -> None:
        self._settings = settings
        self._ready = ready
        self._owner = settings.owner_pid or os.getppid()
        self._backstop = backstop
        self._urgent = False
        self._exit_status = EXIT_OK

    def __enter__(self) -> Lifetime:
        settings = self._settings
        # A shared daemon outlives its spawner: nobody reads its stderr.
        watched = settings.owned or settings.ready_fd is None
        self._log_file = setup_logging(settings.log_file, stderr=watched, verbose=settings.verbose)
        faults.install(faults.Plan.arm(settings.faults))
        if settings.faults:
            log.warning("fault points are armed: %s", ", ".join(faults.installed().texts))
        _reach("start")
        if self._backstop is not None:
            self._backstop.paths = private_leftovers(settings.dialects)
        self._listeners = Listeners(settings.dialects)
        if self._backstop is not None:
            self._backstop.paths = [*settings.dialects, *private_leftovers(settings.dialects)]
        sweep(socket_folder())
        try:
            self._models = [resolve_model(name) for name in (settings.model, settings.text_model) if name is not None]
            self._arena = Arena()
        except BaseException:
            self._listeners.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._arena.close()
        if self._backstop is not None:
            self._backstop.paths = ()  # the next holder's soon
        self._listeners.close()
        faults.installed().close()

    async def serve(self) -> int:
        """Run the daemon's life and return its exit status."""
        self._startup()
        if self._backstop is not None:
            self._backstop.serving = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch_signals, self.stop, _exit_now)
                if self._settings.owned:
                    tasks.start_soon(watch_owner, self._owner_gone, self._owner)
                tasks.start_soon(self._images.run)
                tasks.start_soon(self._fleet.run)
                tasks.start_soon(self._store.run)
                tasks.start_soon(watch_age, self._series.forget_old)
                tasks.start_soon(self._listeners.run)
                await self._main_loop()
                await self._shutdown()
                tasks.cancel_scope.cancel()
        finally:
            self._listeners.stop()
            self._store.close()
        log.info("bye")
        return self._exit_status

    def stop(self, reason: str) -> None:
        """End the main loop."""
        if not self._stopping.is_set():
            log.info("stopping: %s", reason)
        self._stopping.set()

    def _owner_gone(self, reason: str) -> None:
        # Whoever wanted the answers is gone with the owner.
        self._urgent = True
        self.stop(reason)

    def _path_lost(self, reason: str) -> None:
        if self._backstop is not None:
            self._backstop.paths = ()  # another daemon's now
        self.stop(reason)

    # --- startup ----------------------------------------------------------------------------------------------

    def _startup(self) -> None:
        settings = self._settings
        self._stopping = anyio.Event()
        self._images = ImagePool(
            ConfigureImages(
                max_source_pixels=settings.max_source_pixels,
                max_source_bytes=settings.max_source_bytes,
                memory_limit_bytes=settings.image_memory_bytes,
            ),
            arena_fd=self._arena.fd,
            count=settings.image_processes or default_count(cores()),
            timeout_s=settings.image_timeout_s,
            on_prepared=lambda picture: self._scheduler.prepared(picture),
            on_failed=lambda seq, code, error: self._scheduler.picture_failed(seq, code, error),
            on_compared=lambda answer: self._comparisons.answered(answer),
            refreshed=lambda request: self._scheduler.refreshed(request),
        )
        self._scheduler = Scheduler(self._arena, self._images)
        self._comparisons = Comparisons(self._arena, self._images)
        self._series = AllSeries(self._comparisons.give_back, anyio.current_time)
        self._arena.relieve = self._series.relieve
        self._store = ResultStore(settings.store_path, settings.store_bounds, enabled=settings.cache)
        self._fleet = Fleet()
        self._handlers = Handlers(
            settings,
            self._scheduler,
            self._fleet,
            self._images,
            self._log_file,
            self.stop,
            store=self._store,
            comparisons=self._comparisons,
            series=self._series,
        )
        for model in self._models:
            self._fleet.add(self._engine(model))
        self._listeners.bind(self._serve_connection, self._path_lost)
        paths = ", ".join(map(str, settings.dialects))
        log.info("listening at %s (pid %d), loading %s", paths, os.getpid(), ", ".join(self._fleet.engines))
        self._ready.progress("bound", socket=str(settings.socket_path), pid=os.getpid())
        _reach("bound")

    def _engine(self, model: ResolvedModel) -> EngineWorker:
        settings = self._settings
        return EngineWorker(
            ConfigureEngine(
                backend=model.backend,
                name=model.name,
                path=model.path,
                width=settings.batch_width,
                threads=settings.threads,
                off=settings.switched_off,
            ),
            arena_fd=self._arena.fd,
            scheduler=self._scheduler,
            max_image_pixels=settings.max_image_pixels,
            supervision=Supervision(hang_timeout_s=settings.hang_timeout_s, crash_window_s=settings.crash_window_s),
            on_event=self._model_changed,
            on_load_failed=self._model_failed,
        )

    def _model_changed(self, event: EventLine) -> None:
        self._handlers.notify(event)
        if event.state == "loading":
            self._ready.progress("loading", model=event.model, stage=event.stage, fraction=event.fraction)
        elif self._fleet.states == {"ready"}:
            socket = str(self._settings.socket_path)
            self._ready.end("ready", model=self._models[0].name, socket=socket, pid=os.getpid())

    def _model_failed(self, code: str, error: str) -> None:
        self._ready.end("fatal", error=error, code=code)
        self._exit_status = EXIT_MODEL
        self.stop("the model could not be loaded")

    # --- main loop --------------------------------------------------------------------------------------------

    async def _main_loop(self) -> None:
        """Everything happens in the tasks; what is left to do here is to notice that it is time to stop."""
        async with anyio.create_task_group() as tasks:
            if self._settings.idle_timeout_s is not None:
                tasks.start_soon(self._watch_idle, self._settings.idle_timeout_s)
            await self._stopping.wait()
            tasks.cancel_scope.cancel()

    async def _watch_idle(self, timeout_s: float) -> None:
        listeners = self._listeners
        await watch_idle(timeout_s, busy=lambda: listeners.connections > 0, leave=listeners.leave_if_nobody_waits)
        self.stop("idle")

    async def _serve_connection(self, dialect: Dialect, stream: anyio.abc.SocketStream) -> None:
        session = Session(stream, self._handlers, dialect)
        if len(self._handlers.sessions) >= MAX_CONNECTIONS:
            session.shed(f"{MAX_CONNECTIONS} connections are open; no more are taken.")
            return
        self._handlers.sessions.add(session)
        try:
            await session.run()
        except Exception:
            # The named boundary of connections: a defect ends this one, not the daemon.
            log.exception("a defect in a connection")
        finally:
            self._handlers.left(session)

    # --- shutdown ---------------------------------------------------------------------------------------------

    async def _shutdown(self) -> None:
        """Take nothing new, let what runs finish within the drain limit, then close the engine and the rest."""
        with anyio.CancelScope(shield=True):
            self._handlers.draining = True
            self._listeners.stop()
            self._handlers.notify(EventLine(event="draining"))
            _reach("drain")
            await self._drain()
            for job in self._scheduler.jobs:
                line = error_line(job.id, "The daemon shut down before the request was finished.", "shutting_down")
                self._scheduler.end(job, line)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_last_lines)
                tasks.start_soon(partial(self._fleet.close, urgent=self._urgent))
                tasks.start_soon(partial(self._images.close, urgent=self._urgent))

    async def _drain(self) -> None:
        """Wait for the jobs, for as long as there is; the owner's end, also while we wait, leaves no time."""
        with anyio.move_on_after(self._settings.drain_timeout_s):
            while self._scheduler.jobs and not self._urgent and "failed" not in self._fleet.states:
                await anyio.sleep(0.02)

    async def _send_last_lines(self) -> None:
        with anyio.move_on_after(_LAST_LINES_S):
            while any(session.unsent for session in self._handlers.sessions):
                await anyio.sleep(0.01)


def _reach(name: str) -> None:
    if (point := faults.point("daemon", name)) is not None:
        point()


def _exit_now() -> None:
    # A second signal. Workers see the EOF of their socketpair and end by themselves.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
