"""One model's engine worker, supervised: started, listened to, restarted with backoff after a crash."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import anyio
import msgspec
import psutil

from vlmd_bridge.jobs.scheduler import Lane, Scheduler
from vlmd_bridge.workers.child import Child, Exit
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
from vlmd_protocol.messages import EventLine, ModelState, ModelStatus

log = logging.getLogger("vlmd.engine")

# Five crashes within three minutes are no accident; the engine then rests for as long.
_MAX_CRASHES = 5
_CRASH_WINDOW_S = 180.0

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 10.0

# Releasing a large model takes seconds; on macOS a kill before that can strand its memory.
_CLOSE_GRACE_S = 10.0

# A load cannot be interrupted, and nothing is wired before its end: such a worker is terminated soon.
_LOADING_GRACE_S = 0.3


class EngineWorker:
    """The worker of one model, and the scheduler's port to it."""

    def __init__(
        self,
        config: ConfigureEngine,
        *,
        arena_fd: int,
        scheduler: Scheduler,
        max_image_pixels: int,
        on_event: Callable[[EventLine], None],
        on_load_failed: Callable[[str, str], None],
    ) -> None:
        """Prepare, start nothing.

        Args:
            config: the first message to the worker.
            arena_fd: descriptor of the arena.
            scheduler: gets a lane for this model and is told what the worker says.
            max_image_pixels: bound on a picture's area where the model's own is larger; 0 for none.
            on_event: called when the model's state or loading stage changes.
            on_load_failed: called with code and message when the model never loaded.
        """
        self.name = config.name
        self.state: ModelState = "loading"
        self.info: EngineInfo | None = None
        self._config = config
        self._arena_fd = arena_fd
        self._max_image_pixels = max_image_pixels
        self._scheduler = scheduler
        self._on_event = on_event
        self._on_load_failed = on_load_failed
        self._lane: Lane = scheduler.add_lane(config.name, self)
        self._child: Child[FromEngine] | None = None
        self._loading = Loading(stage="starting", fraction=0.0)
        self._failure: LoadFailed | None = None
        self._crashes: deque[float] = deque(maxlen=_MAX_CRASHES)
        self._retry_at = 0.0
        self._closing = False

    # --- the scheduler's port ---------------------------------------------------------------------------------

    def send(self, message: Start | Count | Remove) -> None:
        """Queue a message for the worker."""
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
            pid=self._child.pid if self._child else None,
            memory_bytes=self._memory_bytes(),
            active=self._lane.active,
            engine=None if self.info is None else _shown(self.info),
        )

    async def run(self) -> None:
        """Keep the worker running until `close`."""
        while True:
            child = self._child = Child(
                "vlmd_bridge.engine.process", arena_fd=self._arena_fd, incoming=FromEngine, on_message=self._take
            )
            exit_ = await child.run(self._config)
            if self._closing:
                return
            if self._failure is not None or self.info is None:
                self._load_failed(exit_)
                return
            await self._crashed(exit_)

    async def close(self) -> None:
        """Let the worker release its model and end."""
        self._closing = True
        if self._child is not None:
            await self._child.close(_CLOSE_GRACE_S if self.state == "ready" else _LOADING_GRACE_S)

    # --- inside -----------------------------------------------------------------------------------------------

    def _take(self, message: FromEngine) -> None:
        match message:
            case Delta():
                self._scheduler.delta(self._lane, message)
            case Finished() | Counted():
                self._scheduler.finished(self._lane, message)
            case Failed():
                self._scheduler.failed(self._lane, message)
            case Removed():
                self._scheduler.removed(self._lane, message)
            case Beat():
                log.debug("%s: %d steps, %d active", self.name, message.steps, message.active)
            case Loading():
                self._loading = message
                self._changed(self.state if self.state == "restarting" else "loading")
            case EngineReady():
                self.info = self._bounded(message.info)
                log.info("%s is ready: %s", self.name, _shown(self.info))
                self._changed("ready")
                self._scheduler.engine_ready(self._lane, self.info)
            case LoadFailed():
                self._failure = message

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

    def _load_failed(self, exit_: Exit) -> None:
        if self._failure is None:
            self._failure = LoadFailed(
                code="model_load_failed", error=f"The engine {exit_} while it loaded {self.name}."
            )
        log.error("%s could not be loaded: %s", self.name, self._failure.error)
        self._changed("failed")
        self._scheduler.engine_lost(self._lane)
        self._scheduler.fail_lane(self._lane, self._failure.code, self._failure.error)
        self._on_load_failed(self._failure.code, self._failure.error)

    async def _crashed(self, exit_: Exit) -> None:
        """Hand the lost frames back, then wait: a little at first, long when it crashes again and again."""
        log.error("the engine of %s %s", self.name, exit_)
        now = anyio.current_time()
        self._crashes.append(now)
        recent = [when for when in self._crashes if now - when < _CRASH_WINDOW_S]
        self._scheduler.engine_lost(self._lane)
        if len(recent) < _MAX_CRASHES:
            self._changed("restarting")
            await anyio.sleep(min(_FIRST_BACKOFF_S * 2 ** (len(recent) - 1), _MAX_BACKOFF_S))
            return
        self._retry_at = now + _CRASH_WINDOW_S
        self._changed("unavailable")
        message = f"The engine of {self.name} crashed {len(recent)} times within {_CRASH_WINDOW_S:g} s: it {exit_}."
        self._scheduler.fail_lane(self._lane, "engine_unavailable", message, data={"retryAfterMs": self.retry_after_ms})
        await anyio.sleep_until(self._retry_at)
        self._crashes.clear()
        self._changed("restarting")

    def _bounded(self, info: EngineInfo) -> EngineInfo:
        spec = info.image_spec
        if spec is None or not self._max_image_pixels or spec.max_pixels <= self._max_image_pixels:
            return info
        bounded = msgspec.structs.replace(spec, max_pixels=max(spec.min_pixels, self._max_image_pixels))
        return msgspec.structs.replace(info, image_spec=bounded)

    def _memory_bytes(self) -> int | None:
        if self._child is None or self._child.pid is None:
            return None
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss)
        except psutil.Error:
            return None


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
