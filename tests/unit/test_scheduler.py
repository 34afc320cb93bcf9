"""The scheduler and its jobs as a state machine: whatever happens in whatever order, each frame is answered once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.unit.scheduler_world import INFO, WIDTH, LaneMachine, Ports, World
from vlmd_bridge.workers.messages import (
    Picture,
)
from vlmd_protocol.messages import BatchLine


def test_frames_come_in_order_each_with_its_own_text() -> None:
    world = World()
    _, sink = world.job([f"p{i}" for i in range(10)], batch_size=4)
    assert not world.ports.pictures
    world.scheduler.engine_ready(world.lane, INFO)
    world.run_all()
    assert [result.description for result in sink.results] == [f"p{i}" for i in range(10)]
    lines = [line for line in sink.lines if isinstance(line, BatchLine)]
    assert [(line.batch, line.partial, line.done, line.progress.current) for line in lines] == [
        (1, True, msgspec.UNSET, 4),
        (2, True, msgspec.UNSET, 8),
        (3, False, True, 10),
    ]
    assert (world.arena.taken, world.scheduler.frames_done, world.scheduler.frames_failed) == (0, 10, 0)


def test_the_window_bounds_what_runs_ahead_of_a_slow_first_frame() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job([f"p{i}" for i in range(200)], batch_size=4)
    slow = next(iter(world.ports.pictures))
    for _ in range(200):
        for seq in [seq for seq in world.ports.pictures if seq != slow]:
            world.picture_done(seq)
        for seq in list(world.ports.running):
            world.answer(seq)
    assert sink.lines == []
    assert world.scheduler.frames_done == 63
    world.run_all()
    assert len(sink.results) == 200


def test_a_reader_that_is_behind_pauses_its_job_only() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, slow = world.job([f"s{i}" for i in range(50)])
    _, fast = world.job([f"f{i}" for i in range(50)])
    slow.writable = False
    world.run_all()
    assert len(fast.results) == 50
    assert len(slow.results) < 50
    slow.writable = True
    world.scheduler.pump()
    world.run_all()
    assert len(slow.results) == 50


def test_interactive_goes_first_and_clients_take_turns() -> None:
    world = World()
    world.job([f"a{i}" for i in range(9)])
    world.job([f"b{i}" for i in range(9)])
    world.job(["i0", "i1"], priority="interactive")
    world.scheduler.engine_ready(world.lane, INFO)
    started: list[str] = []
    while world.ports.pictures or world.ports.running:
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        for seq, start in list(world.ports.running.items()):
            (picture,) = [part for part in start.parts if isinstance(part, Picture)]
            started.append(world.written[picture.offset])
            world.answer(seq)
    assert set(started[:2]) == {"i0", "i1"}
    batch = [path[0] for path in started[2:]]
    assert abs(batch[:10].count("a") - batch[:10].count("b")) <= 2


def test_interactive_work_does_not_wait_for_credits_that_batch_work_holds() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    world.job([f"b{i}" for i in range(9)])
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    assert len(world.ports.running) == WIDTH + 2
    world.job(["i0", "i1", "i2"], priority="interactive")
    assert world.ports.front == {"i0", "i1", "i2"}
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    front = [start.front for start in world.ports.running.values()]
    assert front == [False] * (WIDTH + 2) + [True] * 2
    world.run_all()


def test_batch_work_goes_on_while_interactive_work_keeps_coming() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, batch = world.job([f"b{i}" for i in range(4)], batch_size=1)
    asked = 0
    while not batch.ended:
        # More than the engine and the image processes take, always.
        while len(world.scheduler.jobs) < 5 * WIDTH:
            world.job(["i"], priority="interactive")
            asked += 1
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        world.answer(next(iter(world.ports.running)))
        assert asked < 150


def test_a_frame_cut_by_length_is_retried_once_alone_with_twice_the_budget() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["p0"], max_tokens_per_frame=200)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    (first,) = world.ports.running.values()
    world.answer(first.seq, cut=True)
    (second,) = world.ports.running.values()
    assert (first.max_tokens, second.max_tokens) == (200, 400)
    world.answer(second.seq, cut=True)
    (result,) = sink.results
    assert result.code == "truncated"
    assert result.raw_response
    assert world.arena.taken == 0


def test_interleaved_frames_share_a_prompt_and_a_bad_picture_leaves_it() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job(["p0", "bad1", "p2", "p3", "bad4"], mode="interleaved", batch_size=4)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    (start,) = world.ports.running.values()
    assert sum(isinstance(part, Picture) for part in start.parts) == 3
    world.run_all()
    assert [result.code for result in sink.results] == [None, "image_invalid", None, None, "image_invalid"]
    assert [result.description for result in sink.results][::2] == ["p0", "p2", "(not described)"]


def test_a_prompt_that_kills_the_engine_twice_is_given_up_and_runs_alone_meanwhile() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job([f"p{i}" for i in range(6)])
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    lost = len(world.ports.running)
    assert lost > 1
    world.crash()
    world.scheduler.engine_ready(world.lane, INFO)
    assert len(world.ports.running) == 1
    world.crash()
    world.scheduler.engine_ready(world.lane, INFO)
    for _ in range(lost - 1):
        assert len(world.ports.running) == 1
        world.answer(next(iter(world.ports.running)))
    world.run_all()
    assert [result.code for result in sink.results].count("worker_crashed") == 1
    assert len(sink.results) == 6


@pytest.mark.parametrize("way", ["answer", "fail", "bad picture", "cancel", "removal", "crash"])
def test_a_lane_that_waits_for_the_arena_goes_on_when_another_one_gives_ranges_back(way: str) -> None:
    world = World(arena_bytes=16 * 1024)  # one picture
    other = Ports()
    lane = world.scheduler.add_lane("n", other)
    for each in (world.lane, lane):
        world.scheduler.engine_ready(each, INFO)
    job, _ = world.job(["bad" if way == "bad picture" else "p"])
    world.job(["q"], model="n")
    (first,) = world.ports.pictures
    if way != "cancel":
        world.picture_done(first)
    for seq in list(world.ports.running):
        if way in ("cancel", "removal", "crash"):
            world.scheduler.cancel(job)
            assert world.arena.taken == 1
        {"answer": world.answer, "fail": world.fail, "removal": world.removed}.get(way, lambda _: world.crash())(seq)
    if way == "cancel":
        world.scheduler.cancel(job)
    (second,) = world.ports.pictures
    assert world.ports.pictures[second].path == "q"
    world.picture_done(second)
    assert len(other.running) == 1


def test_pictures_of_a_job_that_has_ended_keep_nobody_waiting_and_are_not_counted() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    job, _ = world.job([f"bad{i}" for i in range(50)])
    hung = min(world.ports.pictures)
    world.ports.opening.add(hung)  # on a mount that does not answer
    _, others = world.job([f"p{i}" for i in range(9)])
    world.scheduler.cancel(job)
    waiting = [request.path for request in world.ports.pictures.values()]
    assert waiting == ["bad0", *(f"p{i}" for i in range(WIDTH))]
    assert world.arena.taken == 1 + WIDTH
    assert world.scheduler.queue_status().decoding == WIDTH
    world.picture_done(hung)
    assert world.arena.taken == WIDTH
    world.run_all()
    assert (len(others.results), world.scheduler.frames_done, world.scheduler.frames_failed) == (9, 9, 0)


def test_an_interleaved_prompt_that_is_cancelled_keeps_the_range_of_the_picture_that_is_being_opened() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    job, _ = world.job([f"p{i}" for i in range(8)], mode="interleaved", batch_size=8)
    first, second, *_ = world.ports.pictures
    world.picture_done(first)
    world.ports.opening.add(second)
    world.scheduler.cancel(job)
    (request,) = world.ports.pictures.values()
    assert (request.seq, world.arena.taken) == (second, 1)
    assert world.arena.take(1) != request.offset
    world.arena.give_back(0)
    world.picture_done(second)
    assert (world.arena.taken, world.scheduler.frames_done) == (0, 0)


def test_what_a_failed_step_has_lost_is_tried_again_alone_and_only_then_fails_with_its_own_reason() -> None:
    world = World()
    world.scheduler.engine_ready(world.lane, INFO)
    _, sink = world.job([f"p{i}" for i in range(6)])
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    lost = len(world.ports.running)
    assert lost > 1
    world.fail_together()
    for at in range(lost):
        (seq,) = world.ports.running
        if at == 1:
            world.fail_together()
        else:
            world.answer(seq)
    world.run_all()
    assert [(result.code, result.error) for result in sink.results] == [
        (None, None), ("worker_error", "boom"), *[(None, None)] * 4,
    ]  # fmt: skip
    assert world.arena.taken == 0


def test_any_number_of_jobs_that_cannot_begin_is_refused_at_once() -> None:
    world = World()
    sinks = [world.job(["a"] * 256, mode="interleaved", batch_size=256)[1] for _ in range(300)]
    world.scheduler.engine_ready(world.lane, INFO)  # 256 pictures are more than this world's arena takes
    assert [getattr(sink.lines[0], "code", None) for sink in sinks] == ["invalid_params"] * 300
    assert (world.arena.taken, world.scheduler.jobs) == (0, [])


class SchedulerMachine(LaneMachine):
    """Jobs, pictures, answers, crashes, cancels and slow readers in any order."""

    def __init__(self) -> None:
        super().__init__(World())

    @precondition(lambda self: len(self.jobs) < 6)
    @rule(
        count=st.integers(1, 9),
        bad=st.sets(st.integers(0, 8)),
        batch_size=st.integers(1, 5),
        mode=st.sampled_from(["parallel", "interleaved"]),
        priority=st.sampled_from(["batch", "interactive"]),
    )
    def submit(self, count: int, bad: set[int], batch_size: int, mode: str, priority: str) -> None:
        number = len(self.jobs)
        paths = [f"{'bad' if i in bad else 'p'}{number}.{i}" for i in range(count)]
        job, sink = self.world.job(paths, batch_size=batch_size, mode=mode, priority=priority)
        self.jobs.append((job, sink, paths))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), writable=st.booleans())
    def reader(self, data: st.DataObject, writable: bool) -> None:
        _, sink, _ = data.draw(st.sampled_from(self.jobs))
        sink.writable = writable
        self.world.scheduler.pump()

    @invariant()
    def the_engine_never_holds_more_than_its_credits(self) -> None:
        running = self.world.ports.running.values()
        assert sum(not start.front for start in running) <= WIDTH + 2
        assert len(running) <= WIDTH + 4

    @invariant()
    def every_frame_is_answered_at_most_once_in_order_with_its_own_text(self) -> None:
        for job, sink, paths in self.jobs:
            results = sink.results
            assert [result.index for result in results] == list(range(len(results)))
            for result, path in zip(results, paths, strict=False):
                assert result.image_path == path
                if result.error is None and result.raw_response is None:
                    assert result.description == path
            assert sink.ended == job.ended


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
