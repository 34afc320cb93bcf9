"""The requests of one recording: a later one goes on from what an earlier one left, and nothing is kept for long."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tests.unit.gate_world import GateWorld, texts
from tests.unit.scheduler_world import INFO
from vlmd_bridge.jobs.series import KEPT_S, MAX_LEFT
from vlmd_bridge.workers.arena import ArenaFull
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES


def ready() -> GateWorld:
    world = GateWorld()
    world.scheduler.engine_ready(world.lane, INFO)
    return world


def test_a_later_part_is_compared_with_what_an_earlier_one_described() -> None:
    world = ready()
    world.job(["a/1", "b/2", "b/3"], dedupe=True, series=1)
    world.run_all()
    assert world.inferred == ["a/1", "b/2"]
    _, sink = world.job(["b/4", "a/1", "a/5", "c/6"], dedupe=True, series=1, first=3)
    world.run_all()
    assert world.inferred == ["a/1", "b/2", "c/6"]
    assert texts(sink.results) == [("b", 1), ("a", 0), ("a", 0), ("c", None)]
    _, sink = world.job(["c/7"], dedupe=True, series=1, first=7)
    world.run_all()
    assert texts(sink.results) == [("c", 6)]
    assert world.arena.taken == 1  # the luminance of what was described last
    world.series.forget_client("")
    assert world.arena.taken == 0


def test_equal_pictures_are_known_without_being_asked() -> None:
    world = ready()
    for at in range(3):
        _, sink = world.job(["a/1", "a/2"], series=1, first=2 * at)
        world.run_all()
        assert texts(sink.results) == [("a", None)] * 2
    assert world.inferred == ["a/1", "a/2"]
    assert world.arena.taken == 0


def test_only_the_same_question_of_the_same_client_goes_on() -> None:
    world = ready()
    world.job(["a/1"], dedupe=True, series=1)
    world.run_all()
    others: tuple[dict[str, Any], ...] = (
        {"series": 2},
        {"series": "1"},
        {"dedupe": False},
        {"client": "other"},
        {"prompt": "Why?"},
        {"series": None},
    )
    for at, other in enumerate(others, 1):
        _, sink = world.job(["a/1"], first=at, **{"dedupe": True, "series": 1, **other})
        world.run_all()
        assert texts(sink.results) == [("a", None)], other
    _, sink = world.job(["a/1"], dedupe=True, series=1, first=9)
    world.run_all()
    assert texts(sink.results) == [("a", 0)]


def test_a_part_that_did_not_end_or_failed_leaves_nothing_to_name() -> None:
    world = ready()
    job, sink = world.job(["a/1", "b/2"], dedupe=True, series=1, batch_size=2)
    for seq in list(world.ports.pictures):
        world.picture_done(seq)
    world.compare()
    world.answer(min(world.ports.running))  # known, and not yet delivered
    world.scheduler.cancel(job)
    assert sink.results == []
    world.answer(*world.ports.running)
    _, sink = world.job(["a/1", "a/1"], dedupe=True, series=1, first=2, batch_size=2)
    while not sink.ended:
        for seq in list(world.ports.pictures):
            world.picture_done(seq)
        world.fail(*world.ports.running)
    assert [result.code for result in sink.results] == ["worker_error"] * 2
    _, sink = world.job(["a/1", "a/2"], dedupe=True, series=1, first=4, batch_size=2)
    world.run_all()
    assert texts(sink.results) == [("a", None), ("a", 4)]


def test_parts_that_overlap_go_on_from_the_last_that_has_ended() -> None:
    world = ready()
    sinks = [world.job(["a/1"] * 2, dedupe=True, series=1, first=2 * at)[1] for at in range(2)]
    world.run_all()
    _, sink = world.job(["a/1"] * 2, dedupe=True, series=1, first=4)
    world.run_all()
    assert [texts(each.results)[0][1] for each in sinks] == [None, None]
    assert {duplicate for _, duplicate in texts(sink.results)} <= {0, 2}
    assert world.inferred == ["a/1"] * 2


def test_what_is_left_is_bounded_by_number_time_and_memory() -> None:
    world = ready()
    for at in range(MAX_LEFT + 3):
        world.job(["a/1"], dedupe=True, series=at)
        world.run_all()
    assert world.arena.taken == MAX_LEFT
    world.now_s = KEPT_S / 2
    world.job(["a/1"], dedupe=True, series="late")
    world.run_all()
    world.now_s = KEPT_S
    world.series.forget_old()
    assert world.arena.taken == 1
    held = []
    with suppress(ArenaFull):
        while True:
            held.append(world.arena.take(MAX_LUMA_BYTES))  # pictures of others fill the rest
    _, sink = world.job(["a/1"], dedupe=True)
    world.run_all()
    assert texts(sink.results) == [("a", None)]
    assert world.arena.taken == len(held)
    assert not world.series.relieve()
