"""A scheduler that knows duplicates and stored results, moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.scheduler_world import INFO, ListSink, World
from vlmd_bridge.jobs.comparisons import Comparisons
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.gate import Known
from vlmd_bridge.jobs.series import AllSeries
from vlmd_bridge.jobs.store import JobStore
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.workers.arena import ARENA_BYTES
from vlmd_bridge.workers.image_messages import Compared
from vlmd_bridge.workers.messages import ConfigureEngine, EngineInfo
from vlmd_protocol.messages import DescribeParams, FrameResult, ImageRef


@dataclass
class FakeStore:
    """A store whose answers come when the test says so.

    Attributes:
        once: no value may be kept twice, as where one job asks.
    """

    once: bool = True
    values: dict[bytes, bytes] = field(default_factory=dict)
    asked: list[tuple[bytes, Callable[[bytes | None], None]]] = field(default_factory=list)

    def look_up(self, model: ModelIdentity, request: bytes, answer: Callable[[bytes | None], None]) -> None:
        self.asked.append((request, answer))

    def keep(self, model: ModelIdentity, request: bytes, value: bytes) -> None:
        assert not self.once or request not in self.values
        self.values[request] = value

    def answer(self, at: int) -> None:
        request, answer = self.asked.pop(at)
        answer(self.values.get(request))


@dataclass
class Engine:
    """What is loaded."""

    info: EngineInfo | None = INFO
    identity: ModelIdentity = field(
        default_factory=lambda: ModelIdentity(ConfigureEngine(backend="fake", name="fake", path=""))
    )


class GateWorld(World):
    """A scheduler, moved by hand. A path is ``SHOWS/BYTES``: equal bytes are equal files; ``bad`` cannot be read."""

    def __init__(self, arena_bytes: int = ARENA_BYTES) -> None:
        super().__init__(arena_bytes)
        self.comparisons = Comparisons(self.arena, self.ports)
        self.store = FakeStore()
        self.engine = Engine()
        self.now_s = 0.0
        self.series = AllSeries(self.comparisons.give_back, lambda: self.now_s)
        self.arena.relieve = self.series.relieve

    @staticmethod
    def shows(path: str) -> str:
        return path.partition("/")[0]

    def job(
        self, paths: list[str], *, stored: bool = False, first: int = 0, client: str = "", **params: Any
    ) -> tuple[DescribeJob, ListSink]:
        sink = ListSink()
        images = [ImageRef(image_path=path, index=at) for at, path in enumerate(paths, first)]
        asked = DescribeParams(images=images, **params)
        known = Known(
            store=JobStore(self.store, self.engine) if stored else None,  # type: ignore[arg-type]
            comparisons=self.comparisons,
            series=self.series.of(client, "m", asked),
        )
        job = DescribeJob(1, asked, sink, client or id(sink), known)
        self.scheduler.submit("m", job)
        return job, sink

    def compare(self) -> None:
        request = self.ports.comparing.pop(0)
        found = [like for other in request.others if (like := self.likeness(request.reference, other)) is not None]
        known = next((at for at, like in enumerate(found, 1) if not like.same), len(found))
        self.comparisons.answered(Compared(seq=request.seq, likenesses=tuple(found[:known])))

    def forget(self) -> None:
        """Give back what outlives a job."""
        self.series.forget_client("s")

    def run_all(self) -> None:
        while self.ports.pictures or self.ports.running or self.ports.comparing or self.store.asked:
            for seq in list(self.ports.pictures):
                self.picture_done(seq)
            while self.ports.comparing:
                self.compare()
            while self.store.asked:
                self.store.answer(0)
            for seq in list(self.ports.running):
                self.answer(seq)


def texts(results: list[FrameResult]) -> list[tuple[str, int | None]]:
    """Return each description, and the index of the frame whose text it is."""
    return [(result.description, result.duplicate_of) for result in results]
