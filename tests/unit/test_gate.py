"""Duplicates and stored results in the scheduler: whatever happens, each frame gets a text of what it shows, once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.test_scheduler import INFO, ListSink, Ports
from vlmd_bridge import record
from vlmd_bridge.jobs import dedupe
from vlmd_bridge.jobs.comparisons import Comparisons
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.gate import Known
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.series import AllSeries
from vlmd_bridge.jobs.store import JobStore
from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.workers.arena import ARENA_BYTES, Arena
from vlmd_bridge.workers.image_messages import Compare, Compared, Likeness, Luma, Prepare, Prepared, Reference
from vlmd_bridge.workers.messages import ConfigureEngine, EngineInfo, Failed, Finished, Picture, Removed
from vlmd_protocol.messages import BatchLine, DescribeParams, ErrorLine, FrameResult, ImageRef


@dataclass
class FakeStore:
    """A store whose answers come when the test says so."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    asked: list[tuple[bytes, Callable[[bytes | None], None]]] = field(default_factory=list)

    def look_up(self, model: ModelIdentity, request: bytes, answer: Callable[[bytes | None], None]) -> None:
        self.asked.append((request, answer))

    def keep(self, model: ModelIdentity, request: bytes, value: bytes) -> None:
        assert request not in self.values
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


@dataclass
class GatePorts(Ports):
    """The scheduler's ports, and the one of comparisons."""

    requests: dict[int, Prepare] = field(default_factory=dict)
    comparing: list[Compare] = field(default_factory=list)
    refreshed: Callable[[Prepare], Prepare] = lambda request: request

    def prepare(self, request: Prepare, *, front: bool) -> None:
        super().prepare(request, front=front)
        self.requests[request.seq] = self.refreshed(request)  # sent at once

    def compare(self, request: Compare) -> None:
        self.comparing.append(request)


class World:
    """A scheduler, moved by hand. A path is ``SHOWS/BYTES``: equal bytes are equal files; ``bad`` cannot be read."""

    def __init__(self) -> None:
        self.arena = Arena(ARENA_BYTES)
        self.ports = GatePorts()
        self.scheduler = Scheduler(self.arena, self.ports)
        self.ports.refreshed = self.scheduler.refreshed
        self.comparisons = Comparisons(self.arena, self.ports)
        self.lane = self.scheduler.add_lane("m", self.ports)
        self.store = FakeStore()
        self.engine = Engine()
        self.written: dict[int, str] = {}
        self.inferred: list[str] = []
        self.now_s = 0.0
        self.series = AllSeries(self.comparisons.give_back, lambda: self.now_s)
        self.arena.relieve = self.series.relieve

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

    def picture_done(self, seq: int) -> None:
        path, offset = self.ports.pictures.pop(seq)
        request = self.ports.requests.pop(seq)
        if path.startswith("bad"):
            self.scheduler.picture_failed(seq, "image_invalid", f"{path} is bad")
            return
        self.written[offset] = path
        luma = likeness = None
        if request.luma_offset is not None:
            self.written[request.luma_offset] = path
            luma = Luma(offset=request.luma_offset, width=1, height=1)
            likeness = None if request.reference is None else self.likeness(request.reference, luma)
        self.scheduler.prepared(
            Prepared(
                seq=seq, width=32, height=32, source_width=1, source_height=1, digest=path.encode(), prepare_s=0,
                luma=luma, likeness=likeness,
            )
        )  # fmt: skip

    def compare(self) -> None:
        request = self.ports.comparing.pop(0)
        found = [self.likeness(request.reference, other) for other in request.others]
        known = next((at for at, like in enumerate(found, 1) if not like.same), len(found))
        self.comparisons.answered(Compared(seq=request.seq, likenesses=tuple(found[:known])))

    def likeness(self, reference: Reference, other: Luma) -> Likeness:
        one, same = (self.written[luma.offset].partition("/")[0] for luma in (reference.luma, other))
        return Likeness(same=one == same)

    def answer(self, seq: int, *, cut: bool = False) -> None:
        start = self.ports.running.pop(seq)
        self.ports.removals.discard(seq)
        paths = [self.written[part.offset] for part in start.parts if isinstance(part, Picture)]
        self.inferred += paths
        records = [
            record.Record(description=path.partition("/")[0], activity="a", apps=(), topics=()) for path in paths
        ]
        interleaved = isinstance(start.parts[-1], Picture) is False
        text = record.format_interleaved(records) if interleaved else record.format_record(records[0])
        self.scheduler.finished(
            self.lane,
            Finished(
                seq=seq, text=text[: len(text) // 2] if cut else text, finish_reason="length" if cut else "stop",
                prompt_tokens=1, completion_tokens=1, prefill_s=0, decode_s=0,
            ),
        )  # fmt: skip

    def fail(self, seq: int) -> None:
        self.ports.running.pop(seq)
        self.ports.removals.discard(seq)
        self.scheduler.failed(self.lane, Failed(seq=seq, code="worker_error", error="no"))

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
    return [(result.description, result.duplicate_of) for result in results]


def test_a_recording_of_one_picture_is_inferred_once_and_says_so_where_asked() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, plain = world.job(["a/1"] * 200)
    world.run_all()
    assert world.inferred == ["a/1"]
    assert texts(plain.results) == [("a", None)] * 200
    assert (world.scheduler.frames_done, world.scheduler.frames_duplicate, world.arena.taken) == (200, 199, 0)
    _, asked = world.job(["a/1"] * 3, dedupe=True)
    world.run_all()
    assert texts(asked.results) == [("a", None), ("a", 0), ("a", 0)]
    _, off = world.job(["a/1"] * 3, dedupe=False)
    world.run_all()
    assert world.inferred == ["a/1"] * 5
    assert texts(off.results) == [("a", None)] * 3


def test_frames_of_a_long_recording_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "_MAX_KNOWN", 10)

    def count() -> int:
        gc.collect()
        return sum(isinstance(each, Frame) for each in gc.get_objects())

    before = count()
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    job, sink = world.job([f"{i}/{i}" for i in range(600)], dedupe=True)
    while len(sink.results) < 500:
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        while world.ports.comparing:
            world.compare()
        for seq in list(world.ports.running):
            world.answer(seq)
    assert count() - before < 100
    world.scheduler.cancel(job)


def test_near_duplicates_only_where_asked() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    paths = ["a/1", "a/2", "b/3", "b/4", "a/5", "bad/6", "a/7"]
    _, plain = world.job(paths)
    world.run_all()
    assert len(world.inferred) == 6
    _, asked = world.job(paths, dedupe=True, batch_size=2)
    world.run_all()
    assert world.inferred[6:] == ["a/1", "b/3", "a/5"]
    assert texts(asked.results) == [
        ("a", None), ("a", 0), ("b", None), ("b", 2), ("a", None), ("(not described)", None), ("a", 4),
    ]  # fmt: skip
    assert world.arena.taken == 0
    assert len(plain.results) == 7


def test_a_callers_own_prompt_may_ask_for_the_time() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    sink = ListSink()
    images = [ImageRef(image_path="a/1", timestamp=at) for at in (1, 2, 2)]
    for params in (
        DescribeParams(images=images, prompt="When?"),
        DescribeParams(images=images, schema={"type": "object"}),
    ):
        world.inferred.clear()
        world.scheduler.submit("m", DescribeJob(1, params, ListSink(), id(sink)))
        world.run_all()
        assert len(world.inferred) == 2, params
    world.inferred.clear()
    world.job(["a/1"] * 4, mode="interleaved", batch_size=2)
    world.run_all()
    assert len(world.inferred) == 4


def test_the_first_duplicate_is_opened_again_and_takes_the_place_of_one_that_failed() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["a/1", "a/2", "a/3"], dedupe=True)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    while world.ports.comparing:
        world.compare()
    assert len(world.ports.running) == 1
    world.fail(next(iter(world.ports.running)))
    assert [path for path, _ in world.ports.pictures.values()] == ["a/2"]
    world.run_all()
    assert [(r.code, r.duplicate_of) for r in sink.results] == [("worker_error", None), (None, None), (None, 1)]
    assert (world.scheduler.frames_done, world.scheduler.frames_failed, world.arena.taken) == (2, 1, 0)


def test_what_fails_twice_is_not_tried_for_each_duplicate() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["a/1"] * 50)
    runs = 0
    while not sink.ended:
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        for seq in list(world.ports.running):
            runs += 1
            world.fail(seq)
    assert runs == 2
    assert {result.code for result in sink.results} == {"worker_error"}
    assert world.arena.taken == 0


def test_what_was_inferred_is_found_in_the_store_and_what_failed_or_was_cut_is_not() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    world.job(["a/1", "b/2", "bad/3", "c/4"], stored=True)
    while world.ports.pictures or world.store.asked:
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        while world.store.asked:
            world.store.answer(0)
    first, second, third = world.ports.running
    world.answer(first)
    assert len(world.store.values) == 1  # at once, before its line is whole
    world.fail(second)
    world.answer(third, cut=True)
    (retry,) = world.ports.running
    world.answer(retry)
    assert len(world.store.values) == 2
    world.inferred.clear()
    _, again = world.job(["a/1", "b/2", "bad/3", "c/4"], stored=True, cache=True)
    world.run_all()
    assert world.inferred == ["b/2"]
    assert [(r.description, r.cached) for r in again.results] == [
        ("a", True), ("b", False), ("(not described)", False), ("c", True),
    ]  # fmt: skip
    assert world.scheduler.frames_cached == 2


def test_what_an_engine_answers_is_not_kept_under_the_model_of_the_one_before_it() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["a/1"], stored=True)
    world.picture_done(next(iter(world.ports.pictures)))
    world.store.answer(0)
    world.ports.running.clear()
    world.scheduler.engine_lost(world.lane)
    world.engine.identity = Engine().identity
    world.scheduler.engine_ready(world.lane, INFO)
    world.run_all()
    assert texts(sink.results) == [("a", None)]
    assert world.store.values == {}


def test_interleaved_results_are_kept_by_whole_groups() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    paths = ["a/1", "b/2", "c/3", "d/4", "bad/5", "e/6"]
    world.job(paths, stored=True, mode="interleaved", batch_size=2)
    world.run_all()
    assert len(world.store.values) == 2
    world.inferred.clear()
    _, again = world.job(["a/1", "b/2", "c/3", "x/4"], stored=True, mode="interleaved", batch_size=2)
    world.run_all()
    assert world.inferred == ["c/3", "x/4"]
    assert texts(again.results) == [("a", None), ("b", None), ("c", None), ("x", None)]


class GateMachine(RuleBasedStateMachine):
    """Jobs with duplicates and a store; pictures, comparisons, lookups, answers, crashes and cancels in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.up = False
        self.jobs: list[tuple[DescribeJob, ListSink, list[str]]] = []
        self.frames = 0

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(
        frames=st.lists(
            st.tuples(st.sampled_from(["a", "b", "bad"]), st.integers(0, 2)).map("{0[0]}/{0[1]}".format),
            min_size=1,
            max_size=12,
        ),
        dedupe=st.sampled_from([None, True, False]),
        stored=st.booleans(),
        batch_size=st.sampled_from([1, 3]),
        series=st.sampled_from([None, "s", "s"]),
    )
    def submit(self, frames: list[str], dedupe: bool | None, stored: bool, batch_size: int, series: str | None) -> None:
        self.world.store.values.clear()
        job, sink = self.world.job(
            frames, dedupe=dedupe, stored=stored, batch_size=batch_size, series=series, first=self.frames,
            client=series or "",
        )  # fmt: skip
        self.frames += len(frames)
        self.jobs.append((job, sink, frames))

    @precondition(lambda self: not self.up)
    @rule()
    def ready(self) -> None:
        self.up = True
        self.world.scheduler.engine_ready(self.world.lane, INFO)

    @precondition(lambda self: self.up)
    @rule()
    def crash(self) -> None:
        self.up = False
        self.world.ports.running.clear()
        self.world.ports.removals.clear()
        self.world.scheduler.engine_lost(self.world.lane)

    @precondition(lambda self: self.world.ports.pictures)
    @rule(data=st.data())
    def picture(self, data: st.DataObject) -> None:
        self.world.picture_done(data.draw(st.sampled_from(sorted(self.world.ports.pictures))))

    @precondition(lambda self: self.world.ports.comparing)
    @rule()
    def compare(self) -> None:
        self.world.compare()

    @precondition(lambda self: self.world.store.asked)
    @rule(data=st.data())
    def lookup(self, data: st.DataObject) -> None:
        self.world.store.values = {}  # the same question may come from several jobs
        self.world.store.answer(data.draw(st.integers(0, len(self.world.store.asked) - 1)))

    @precondition(lambda self: self.world.ports.running)
    @rule(data=st.data(), what=st.sampled_from(["answer", "answer", "cut", "fail"]))
    def engine(self, data: st.DataObject, what: str) -> None:
        seq = data.draw(st.sampled_from(sorted(self.world.ports.running)))
        self.world.store.values = {}
        if what == "fail":
            self.world.fail(seq)
        else:
            self.world.answer(seq, cut=what == "cut")

    @precondition(lambda self: self.world.ports.removals)
    @rule()
    def acknowledge(self) -> None:
        seq = self.world.ports.removals.pop()
        del self.world.ports.running[seq]
        self.world.scheduler.removed(self.world.lane, Removed(seq=seq))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job, _, _ = data.draw(st.sampled_from(self.jobs))
        if not job.ended:
            self.world.scheduler.cancel(job)

    @rule()
    def want_memory(self) -> None:
        self.world.series.relieve()

    @invariant()
    def each_frame_is_answered_once_in_order_with_a_text_of_what_it_shows(self) -> None:
        delivered = {result.index: (job, result) for job, sink, _ in self.jobs for result in sink.results}
        for job, sink, paths in self.jobs:
            results = sink.results
            indexes = [image.index for image in job.params.images]
            assert [result.index for result in results] == indexes[: len(results)]
            for result, path in zip(results, paths, strict=False):
                assert result.image_path == path
                if result.error is None:
                    assert result.description == path.partition("/")[0]
                if result.duplicate_of is not None:
                    other, original = delivered[result.duplicate_of]
                    assert other is job or other.params.series == job.params.series == "s"
                    assert original.index < result.index
                    assert original.error is original.duplicate_of is None
                    assert original.description == result.description
            assert sink.ended == job.ended

    def teardown(self) -> None:
        world = self.world
        if not self.up:
            world.scheduler.engine_ready(world.lane, INFO)
        for seq in list(world.ports.removals):
            del world.ports.running[seq]
            world.scheduler.removed(world.lane, Removed(seq=seq))
        world.ports.removals.clear()
        world.store.values = {}
        ports = world.ports
        while ports.pictures or ports.comparing or world.store.asked or ports.running:
            world.store.values = {}
            for seq in list(world.ports.pictures):
                world.picture_done(seq)
            if world.ports.comparing:
                world.compare()
            if world.store.asked:
                world.store.answer(0)
            if world.ports.running:
                world.answer(next(iter(world.ports.running)))
        for job, sink, paths in self.jobs:
            assert job.ended
            assert isinstance(sink.lines[-1], ErrorLine) or len(sink.results) == len(paths)
            assert isinstance(sink.lines[-1], ErrorLine | BatchLine)
        world.series.forget_client("s")
        assert world.arena.taken == 0
        assert world.scheduler.queue_status().jobs == 0
        world.arena.close()


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
