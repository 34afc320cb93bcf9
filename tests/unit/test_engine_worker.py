"""When the worker of a model is started again, and when its jobs are told that it is not. No process, no real time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from tests.unit.scheduler_world import INFO, ListSink, Ports
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.workers import engine as engine_module
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.child import Exit
from vlmd_bridge.workers.engine import EngineWorker, Supervision
from vlmd_bridge.workers.messages import ConfigureEngine, EngineReady, FromEngine, Message
from vlmd_protocol.messages import DescribeParams, ErrorLine, EventLine, ImageRef, ModelStatus

_WINDOW_S = 180.0


@dataclass(frozen=True)
class _Life:
    """What a process does once it is started. Without an end it runs until the test is over."""

    load_s: float
    ready_s: float | None = None
    ends: bool = True


@dataclass
class _World:
    """An engine worker whose processes live as they are told to, and a clock that only they and its rests move."""

    lives: list[_Life]
    now_s: float = 1000.0
    starts: int = 0
    states: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    rests: list[tuple[float, ModelStatus]] = field(default_factory=list)

    def __post_init__(self) -> None:
        arena, self.sink = Arena(1024 * 1024), ListSink()
        scheduler = Scheduler(arena, Ports())
        self.worker = EngineWorker(
            ConfigureEngine(backend="fake", name="m", path=""),
            arena_fd=-1,
            scheduler=scheduler,
            max_image_pixels=0,
            supervision=Supervision(crash_window_s=_WINDOW_S),
            on_event=self._on_event,
            on_load_failed=lambda code, error: self.failures.append((code, error)),
        )
        arena.close()
        params = DescribeParams(images=[ImageRef(image_path="/a.png")])
        scheduler.submit("m", DescribeJob(1, params, self.sink, client=1))

    def _on_event(self, event: EventLine) -> None:
        self.states.append(str(event.state))

    def child(self, _place: str, *, on_message: Callable[[FromEngine], None], **_: Any) -> _Child:
        self.starts += 1
        return _Child(self, self.lives.pop(0), on_message)

    async def rest(self, _worker: EngineWorker, seconds: float) -> None:
        self.rests.append((seconds, self.worker.status()))
        self.now_s += seconds

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run the worker until it gives up, or until a process that does not end is ready."""
        monkeypatch.setattr(engine_module, "Child", self.child)
        monkeypatch.setattr(EngineWorker, "_rest", lambda *arguments: self.rest(*arguments))
        monkeypatch.setattr(anyio, "current_time", lambda: self.now_s)
        anyio.run(self._until_settled)

    async def _until_settled(self) -> None:
        self.settled = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run_worker)
            await self.settled.wait()
            tasks.cancel_scope.cancel()

    async def _run_worker(self) -> None:
        await self.worker.run()
        self.settled.set()


class _Child:
    """Stands for a process."""

    pid = None

    def __init__(self, world: _World, life: _Life, on_message: Callable[[FromEngine], None]) -> None:
        self._world = world
        self._life = life
        self._on_message = on_message

    def send(self, message: Message) -> None:
        pass

    async def run(self, _first: Message) -> Exit:
        self._world.now_s += self._life.load_s
        if self._life.ready_s is not None:
            self._on_message(EngineReady(pid=1, info=INFO))
            self._world.now_s += self._life.ready_s
        if not self._life.ends:
            self._world.settled.set()
            await anyio.sleep_forever()
        return Exit(returncode=-9, last_lines=())


@pytest.mark.parametrize("load_s", [1.0, 45.0, 180.0, 600.0])
def test_an_engine_that_cannot_be_loaded_again_is_unavailable_after_five_crashes(
    monkeypatch: pytest.MonkeyPatch, load_s: float
) -> None:
    lives = [_Life(load_s, ready_s=3600.0), *[_Life(load_s)] * 4, _Life(load_s, ready_s=0.0, ends=False)]
    world = _World(lives)
    world.run(monkeypatch)
    *waits, (rest_s, told) = world.rests
    assert [seconds for seconds, _ in waits] == [0.25, 0.5, 1.0, 2.0]
    assert rest_s == _WINDOW_S
    assert (told.state, told.code, told.retry_after_ms) == ("unavailable", "engine_unavailable", 180_000)
    assert "crashed 5 times and finished nothing between: it ended with signal 9" in str(told.error)
    (line,) = world.sink.lines
    assert isinstance(line, ErrorLine) and line.code == "engine_unavailable"
    assert line.data == {"retryAfterMs": 180_000}
    assert world.states == ["ready", *["restarting"] * 4, "unavailable", "restarting", "ready"]
    assert world.worker.status().error is None and world.failures == []


@pytest.mark.parametrize("load_s", [1.0, 180.0, 3600.0])
def test_a_first_load_that_is_killed_is_tried_once_more(monkeypatch: pytest.MonkeyPatch, load_s: float) -> None:
    world = _World([_Life(load_s)] * 3)
    world.run(monkeypatch)
    assert (world.starts, world.states) == (2, ["failed"])
    ((code, error),) = world.failures
    assert code == "model_load_failed" and "ended with signal 9, while it loaded m" in error
    (line,) = world.sink.lines
    assert isinstance(line, ErrorLine) and line.code == "model_load_failed"


def test_crashes_with_long_work_between_are_not_held_against_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World([*[_Life(1.0, ready_s=_WINDOW_S)] * 20, _Life(1.0, ready_s=0.0, ends=False)])
    world.run(monkeypatch)
    assert [seconds for seconds, _ in world.rests] == [0.25] * 20
    assert world.sink.lines == []
