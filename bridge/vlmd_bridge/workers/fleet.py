"""The engines of a daemon, by model. A request is served by the model it names, or by the one its content needs."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from vlmd_bridge.workers.engine import EngineWorker
from vlmd_protocol.errors import shorten
from vlmd_protocol.messages import ModelState, ModelStatus


class NoEngine(Exception):
    """No engine can take the request; `code` and `data` go into its error line."""

    def __init__(self, message: str, code: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Fleet:
    """Every engine worker, started, found and ended together."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineWorker] = {}

    def add(self, engine: EngineWorker) -> None:
        """Take `engine` in; the first one is the default."""
        self.engines[engine.name] = engine

    @property
    def states(self) -> set[ModelState]:
        """The states that occur."""
        return {engine.state for engine in self.engines.values()}

    @property
    def statuses(self) -> list[ModelStatus]:
        """What `status` and `hello` show."""
        return [engine.status() for engine in self.engines.values()]

    def find(self, model: str | None, *, needs_vision: bool) -> EngineWorker:
        """Return the engine that `model` names, never another one; without a name, the one the content needs.

        Raises:
            NoEngine: there is none, it takes no pictures, or it failed.
        """
        if model is None:
            # Text alone goes to the text model where there is one.
            fitting = [engine for engine in self.engines.values() if engine.takes_pictures == needs_vision]
            engine = next(iter([*fitting, *self.engines.values()]))
        else:
            named = [engine for engine in self.engines.values() if model in engine.names]
            if not named:
                raise NoEngine(
                    f"This daemon does not serve the model {shorten(model)!r}; it serves {', '.join(self.engines)}.",
                    "model_not_loaded",
                    {"models": list(self.engines)},
                )
            engine = named[0]
        if needs_vision and not engine.takes_pictures:
            raise NoEngine(f"The model {engine.name} takes no pictures.", "vision_unsupported")
        status = engine.status()
        if engine.state == "failed":
            raise NoEngine(status.error or "The model failed to load.", status.code or "model_load_failed")
        if engine.state == "unavailable":
            raise NoEngine(
                status.error or f"The engine of {engine.name} crashed too often and rests.",
                "engine_unavailable",
                {"retryAfterMs": engine.retry_after_ms},
            )
        return engine

    async def run(self) -> None:
        """Keep the engines running until `close`."""
        async with anyio.create_task_group() as tasks:
            for engine in self.engines.values():
                tasks.start_soon(engine.run)

    async def close(self, *, urgent: bool = False) -> None:
        """Let every engine release its model and end, all at once; `urgent` as for an engine."""
        async with anyio.create_task_group() as tasks:
            for engine in self.engines.values():
                tasks.start_soon(partial(engine.close, urgent=urgent))
