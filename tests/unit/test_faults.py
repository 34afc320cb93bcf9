"""Fault points: what may be asked for, when they strike, and how often in a tree of processes."""

from __future__ import annotations

import pytest

from vlmd_bridge import faults
from vlmd_bridge.faults import FaultSpecError, InjectedFault, Plan, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worker.abort@token:17", ("worker", "abort", None, "token", 17, None, 1)),
        ("worker.hang@start", ("worker", "hang", None, "start", 1, None, 1)),
        ("worker.slow=20@step:3x*", ("worker", "slow", 20, "step", 3, None, None)),
        ("image.kill@picture:5x2", ("image", "kill", None, "picture", 5, None, 2)),
        ("worker.segv@text:xbox onex3", ("worker", "segv", None, "text", 1, "xbox one", 3)),
        ("daemon.exit@batchx4", ("daemon", "exit", None, "batch", 1, None, 4)),
    ],
)
def test_what_may_be_asked_for(text: str, expected: tuple[object, ...]) -> None:
    (fault,) = parse(f" {text} ,")
    assert expected == (
        *(fault.place, fault.kind, fault.argument, fault.point),
        *(fault.count, fault.content, fault.times),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("worker", "is no fault"),
        ("gpu.abort@step", "no known place; there are daemon, store, worker, image"),
        ("worker.explode@step", "no known kind; there are abort"),
        ("worker.abort@picture:1", "no point of worker, which has start, ready"),
        ("worker.abort@step:0", "counts occurrences of step from 1"),
        ("worker.abort@step:soon", "counts occurrences"),
        ("worker.abort@text", "needs what text is to have"),
        ("worker.abort@step:1x0", "1 to 4096 times"),
        ("daemon.torn@batch", "for worker and image only"),
    ],
)
def test_what_may_not_names_what_there_is(text: str, why: str) -> None:
    with pytest.raises(FaultSpecError) as caught:
        parse(f"worker.abort@step,{text}")
    assert why in str(caught.value) and faults.VARIABLE in str(caught.value)
    assert caught.value.code == "config_invalid"


def struck(point: faults.Point | None, *content: str) -> bool:
    assert point is not None
    try:
        point(*content)
    except InjectedFault:
        return True
    return False


def test_nothing_is_armed_unless_asked_for() -> None:
    assert Plan.arm("").point("worker", "step") is None
    assert Plan.arm("worker.raise@token").point("worker", "step") is None


def test_strikes_from_an_occurrence_on_as_often_as_it_may() -> None:
    plan = Plan.arm("worker.raise@step:3x2,worker.raise@token:2x*")
    at_step = plan.point("worker", "step")
    assert [struck(at_step) for _ in range(6)] == [False, False, True, True, False, False]
    at_token = plan.point("worker", "token")
    assert [struck(at_token) for _ in range(4)] == [False, True, True, True]
    plan.close()


def test_looks_for_content() -> None:
    plan = Plan.arm("worker.raise@text:poisonx*")
    point = plan.point("worker", "text")
    assert [struck(point, text) for text in ("a poisoned well", "a well", "poison")] == [True, False, True]


def test_processes_of_one_tree_share_how_often() -> None:
    plan = Plan.arm("worker.raise@step:2x3,image.raise@picture")
    arguments, fds = plan.handed_on("worker")
    assert len(arguments) == len(fds) == 1
    children = [Plan.inherit([argument.removeprefix("--fault=") for argument in arguments]) for _ in range(5)]
    strikes = []
    for child in children:  # one after the other, as a worker is replaced; each counts its own steps
        point = child.point("worker", "step")
        assert not struck(point)
        strikes.append(struck(point))
    assert strikes == [True, True, True, False, False]
    plan.close()


def test_one_count_however_many_ask_for_the_point() -> None:
    plan = Plan.arm("daemon.raise@batch:3x*")
    points = [plan.point("daemon", "batch") for _ in range(3)]
    assert [struck(point) for point in points] == [False, False, True]
