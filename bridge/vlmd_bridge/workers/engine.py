"""One model's engine worker, supervised: started, listened to, restarted with backoff after a crash."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import msgspec

from vlmd_bridge.jobs.lane import Lane
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.workers.child import Child, Exit
from vlmd_bridge.workers.crashes import MAX_CRASHES, CrashCounter
from vlmd_bridge.workers.messages import (
    Beat,
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    EngineInfo,
    EngineReady,
    Failed,
    Finished,
    FromEngine,
    LoadFailed,
    Loading,
    Remove,
    Removed,
    Start,
)
from vlmd_bridge.workers.quiet import Quiet
from vlmd_bridge.workers.usage import cpu_s, memory_bytes
from vlmd_protocol.messages import EventLine, ModelState, ModelStatus

log = logging.getLogger("vlmd.engine")

# Releasing a large model takes seconds; on macOS a kill before that can strand its memory.
_CLOSE_GRACE_S = 10.0

# The same where the daemon has to be gone two seconds after its owner.
_URGENT_GRACE_S = 0.8
_URGENT_TERM_S = 0.2

# A load cannot be interrupted, and nothing is wired before its end; nor is a release to be waited for of a worker that
# has done nothing for so long. Such a worker is terminated soon.
_SHORT_GRACE_S = 0.3
_STUCK_S = 5.0

# A load tells of its stages only, and reading the weights is one: from a slow disk it takes minutes.
_LOADING_FACTOR = 5

# A first load that was ended so often is given up: a model that crashes whatever reads it is not worth more of them.
_MAX_LOAD_CRASHES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervision:
    """When an engine counts as hung, and how long crashes are held against it; see `DaemonSettings`."""

    hang_timeout_s: float = 120.0
    crash_window_s: float = 180.0


class EngineWorker:
    """The worker of one model, and the scheduler's port to it."""

    def __init__(
        self,
        config: ConfigureEngine,
        *,
        arena_fd: int,
        scheduler: Scheduler,
        max_image_pixels: int,
        supervision: Supervision,
        on_event: Callable[[EventLine], None],
        on_load_failed: Callable[[str, str], None],
    ) -> None:
        """Prepare, start nothing.

        Args:
            config: the first message to the worker.
            arena_fd: descriptor of the arena.
            scheduler: gets a lane for this model and is told what the worker says.
            max_image_pixels: bound on a picture's area where the model's own is larger; 0 for none.
            supervision: when it hangs, and when it crashes too often.
            on_event: called when the model's state or loading stage changes.
            on_load_failed: called with code and message when the model never loaded.
        """
        self.name = config.name
        self.state: ModelState = "loading"
        self.info: EngineInfo | None = None
        self.identity = ModelIdentity(config)
        self._config = config
        self._arena_fd = arena_fd
        self._max_image_pixels = max_image_pixels
        self._scheduler = scheduler
        self._on_event = on_event
        self._on_load_failed = on_load_failed
        self._lane: Lane = scheduler.add_lane(config.name, self)
        self._child: Child[FromEngine] | None = None
        self._loading = Loading(stage="starting", fraction=0.0)
        self._failure: LoadFailed | None = None  # why it serves nothing
        self._load_refusal: LoadFailed | None = None  # what the worker that runs now said of its load
        self._supervision = supervision
        self._crashes = CrashCounter(supervision.crash_window_s)
        self._quiet = Quiet(supervision.hang_timeout_s)
        self._hung = ""
        self._steps = 0
        self._ready_at = 0.0
        self._retry_at = 0.0
        self._closing = anyio.Event()

    # --- the scheduler's port ---------------------------------------------------------------------------------

    def send(self, message: Start | Count | Remove) -> None:
        """Queue a message for the worker."""
        if not isinstance(message, Remove) and self._lane.active <= 1:
            self._quiet.progress()  # it had nothing to do until now
        if self._child is not None:
            self._child.send(message)

    # --- what the daemon asks ---------------------------------------------------------------------------------

    @property
    def takes_pictures(self) -> bool:
        """Whether the model is one for pictures."""
        return self._config.backend != "text"

    @property
    def names(self) -> tuple[str, str]:
        """What a request may call this model: the name it was loaded by, or its folder."""
        return self.name, self._config.path

    @property
    def retry_after_ms(self) -> int:
        """While `unavailable`: when the engine is tried again."""
        return max(0, round((self._retry_at - anyio.current_time()) * 1000))

    def status(self) -> ModelStatus:
        """Return what `status` and `hello` show of this model."""
        loading = self.state in ("loading", "restarting")
        return ModelStatus(
            name=self.name,
            state=self.state,
            kind=self._config.backend,
            stage=self._loading.stage if loading else None,
            fraction=self._loading.fraction if loading else None,
            error=self._failure.error if self._failure else None,
            code=self._failure.code if self._failure else None,
            retry_after_ms=self.retry_after_ms if self.state == "unavailable" else None,
            pid=self._pid,
            memory_bytes=memory_bytes(self._pid),
            active=self._lane.active,
            engine=None if self.info is None else _shown(self.info),
        )

    @property
    def _pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Keep the worker running until `close`."""
        while not self._closing.is_set():
            # Before its files are read: what changes from here on is noticed.
            self.identity = ModelIdentity(self._config)
            child = self._child = Child("worker", arena_fd=self._arena_fd, incoming=FromEngine, on_message=self._take)
            exit_ = await self._run(child)
            if self._closing.is_set():
                return
            reason = self._reason(exit_)
            if self.info is not None:
                await self._crashed(reason, exit_)
            elif self._load_refusal is not None or self._hung or not await self._load_again(exit_):
                self._load_failed(reason)
                return

    async def close(self, *, urgent: bool = False) -> None:
        """Let the worker release its model and end; `urgent` where the owner is gone and we must be, too."""
        self._closing.set()
        if self._child is None:
            return
        if self.state != "ready" or self._quiet.quiet_s >= _STUCK_S:
            await self._child.close(_SHORT_GRACE_S, _SHORT_GRACE_S)
        elif urgent:
            await self._child.close(_URGENT_GRACE_S, _URGENT_TERM_S)
        else:
            await self._child.close(_CLOSE_GRACE_S)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _run(self, child: Child[FromEngine]) -> Exit:
        """Run `child` to its end, which is brought about where it shows no progress."""
        self._load_refusal = None
        self._hung = ""
        self._steps = 0
        self._quiet = Quiet(_LOADING_FACTOR * self._supervision.hang_timeout_s)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, child)
            exit_ = await child.run(self._config)
            tasks.cancel_scope.cancel()
        return exit_

    async def _watch(self, child: Child[FromEngine]) -> None:
        """End the worker once it has had something to do and shown no progress for too long."""
        looked_at = anyio.current_time()
        while True:
            await anyio.sleep(self._quiet.tick_s)
            now = anyio.current_time()
            if self.state == "ready" and not self._lane.active:
                self._quiet.progress()
            else:
                self._quiet.tick(now - looked_at, cpu_s(child.pid))
            looked_at = now
            if self._quiet.hung:
                what = f"with {self._lane.active} sequences" if self.state == "ready" else "in loading"
                self._hung = f"made no progress for {self._quiet.quiet_s:.3g} s {what}"
                log.error("the engine of %s %s", self.name, self._hung)
                await child.end_hung()
                return

    def _take(self, message: FromEngine) -> None:
        if not isinstance(message, Beat) or message.steps != self._steps:
            self._quiet.progress()
        match message:
            case Delta():
                self._scheduler.delta(self._lane, message)
            case Finished() | Counted():
                if isinstance(message, Finished):
                    self._crashes.progressed()
                self._scheduler.finished(self._lane, message)
            case Failed():
                self._scheduler.failed(self._lane, message)
            case Removed():
                self._scheduler.removed(self._lane, message)
            case Beat():
                self._steps = message.steps
                log.debug("%s: %d steps, %d active", self.name, message.steps, message.active)
            case Loading():
                self._loading = message
                self._changed(self.state if self.state == "restarting" else "loading")
            case EngineReady():
                self.info = self._bounded(message.info)
                self._failure = None
                self._ready_at = anyio.current_time()
                self._quiet = Quiet(self._supervision.hang_timeout_s)
                log.info("%s is ready: %s", self.name, _shown(self.info))
                self._changed("ready")
                self._scheduler.engine_ready(self._lane, self.info)
            case LoadFailed():
                self._load_refusal = message

    def _changed(self, state: ModelState) -> None:
        self.state = state
        loading = state in ("loading", "restarting")
        self._on_event(
            EventLine(
                event="model",
                model=self.name,
                state=state,
                stage=self._loading.stage if loading else None,
                fraction=self._loading.fraction if loading else None,
            )
        )

    def _reason(self, exit_: Exit) -> str:
        """Return why the worker ended, to follow the words "the engine"."""
        if self._load_refusal is not None:
            return f"could not load it again: {self._load_refusal.error}"
        return f"{self._hung} and {exit_}" if self._hung else str(exit_)

    async def _load_again(self, exit_: Exit) -> bool:
        """Wait for another try of the first load where it was ended without a word, by the system or by somebody."""
        if self._crashes.crashed(0.0) >= _MAX_LOAD_CRASHES:
            return False
        log.error("the engine of %s %s, in its first load; it is tried once more", self.name, exit_.report)
        await self._rest(self._crashes.backoff_s())
        return True

    def _load_failed(self, reason: str) -> None:
        self._failure = self._load_refusal or LoadFailed(
            code="model_load_failed", error=f"The engine {reason}, while it loaded {self.name}."
        )
        log.error("%s could not be loaded: %s", self.name, self._failure.error)
        self._changed("failed")
        self._scheduler.engine_lost(self._lane)
        self._scheduler.fail_lane(self._lane, self._failure.code, self._failure.error)
        self._on_load_failed(self._failure.code, self._failure.error)

    async def _crashed(self, reason: str, exit_: Exit) -> None:
        """Hand the lost frames back, then wait: a little at first, long when it crashes again and again."""
        log.error("the engine of %s %s", self.name, exit_.report)
        now = anyio.current_time()
        crashes = self._crashes.crashed(now - self._ready_at if self.state == "ready" else 0.0)
        self._scheduler.engine_lost(self._lane)
        if crashes < MAX_CRASHES:
            self._changed("restarting")
            await self._rest(self._crashes.backoff_s())
            return
        window_s = self._crashes.window_s
        self._retry_at = now + window_s
        message = f"The engine of {self.name} crashed {crashes} times and finished nothing between: it {reason}."
        log.error("%s It is started again in %g s.", message, window_s)
        self._failure = LoadFailed(code="engine_unavailable", error=message)
        self._changed("unavailable")
        self._scheduler.fail_lane(self._lane, "engine_unavailable", message, data={"retryAfterMs": self.retry_after_ms})
        await self._rest(window_s)
        self._crashes.progressed()
        self._changed("restarting")

    async def _rest(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._closing.wait()

    def _bounded(self, info: EngineInfo) -> EngineInfo:
        spec = info.image_spec
        if spec is None or not self._max_image_pixels or spec.max_pixels <= self._max_image_pixels:
            return info
        bounded = msgspec.structs.replace(spec, max_pixels=max(spec.min_pixels, self._max_image_pixels))
        return msgspec.structs.replace(info, image_spec=bounded)


def _shown(info: EngineInfo) -> dict[str, object]:
    return {
        "modelType": info.model_type,
        "path": info.path,
        "width": info.width,
        "contextTokens": info.context_tokens,
        "weightBytes": info.weight_bytes,
        "dtype": info.dtype,
        "device": info.device,
        "blas": info.blas,
        "threads": info.threads,
        "loadS": round(info.load_s, 3),
        "versions": info.versions,
    }
