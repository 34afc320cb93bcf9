"""Duplicates and stored results in the scheduler: whatever happens, each frame gets a text of what it shows, once."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.unit.gate_world import Engine, GateWorld, texts
from tests.unit.scheduler_world import INFO, LaneMachine, ListSink
from vlmd_bridge.jobs import dedupe
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES
from vlmd_protocol.messages import DescribeParams, ImageRef


def test_a_recording_of_one_picture_is_inferred_once_and_says_so_where_asked() -> None:
    world = GateWorld()
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
    world = GateWorld()
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
    world = GateWorld()
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
    world = GateWorld()
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
    world = GateWorld()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["a/1", "a/2", "a/3"], dedupe=True)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    while world.ports.comparing:
        world.compare()
    assert len(world.ports.running) == 1
    world.fail(next(iter(world.ports.running)))
    assert [request.path for request in world.ports.pictures.values()] == ["a/2"]
    world.run_all()
    assert [(r.code, r.duplicate_of) for r in sink.results] == [("worker_error", None), (None, None), (None, 1)]
    assert (world.scheduler.frames_done, world.scheduler.frames_failed, world.arena.taken) == (2, 1, 0)


def test_what_fails_twice_is_not_tried_for_each_duplicate() -> None:
    world = GateWorld()
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
    world = GateWorld()
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
    world = GateWorld()
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
    world = GateWorld()
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


def test_jobs_whose_references_fill_the_arena_all_come_to_their_end() -> None:
    world = GateWorld()
    world.scheduler.engine_ready(world.lane, INFO)
    fit = world.arena.size_bytes // MAX_LUMA_BYTES
    # The first frame of each is described and kept to compare with. In the first job's, the second shows the same.
    sinks = [world.job([f"{at}/1", f"{at}/2" if at == 0 else "x/2"], dedupe=True)[1] for at in range(fit + 10)]
    world.run_all()
    assert all(len(sink.results) == 2 for sink in sinks)
    assert not any(result.error for sink in sinks for result in sink.results)
    assert texts(sinks[0].results) == [("0", None), ("0", 0)]
    assert world.arena.taken == 0


class GateMachine(LaneMachine):
    """Jobs with duplicates and a store; pictures, comparisons, lookups, answers, crashes and cancels in any order."""

    def __init__(self) -> None:
        # References of three jobs fill it.
        self.gate = GateWorld(4 * MAX_LUMA_BYTES)
        super().__init__(self.gate)
        self.gate.store.once = False  # the same question may come from several jobs
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
        job, sink = self.gate.job(
            frames, dedupe=dedupe, stored=stored, batch_size=batch_size, series=series, first=self.frames,
            client=series or "",
        )  # fmt: skip
        self.frames += len(frames)
        self.jobs.append((job, sink, frames))

    @precondition(lambda self: self.gate.ports.comparing)
    @rule()
    def compare(self) -> None:
        self.gate.compare()

    @precondition(lambda self: self.gate.store.asked)
    @rule(data=st.data())
    def lookup(self, data: st.DataObject) -> None:
        self.gate.store.answer(data.draw(st.integers(0, len(self.gate.store.asked) - 1)))

    @rule()
    def want_memory(self) -> None:
        self.gate.series.relieve()

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


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
