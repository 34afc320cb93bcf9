"""Which frames share a text, as a pure state machine against a model that looks at the whole job at once."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vlmd_bridge.jobs.dedupe import Compare, Decision, Dedupe, Describe, Follow
from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.workers.image_messages import Bar
from vlmd_protocol.messages import FrameResult, ImageRef

RESULT = FrameResult(
    index=0, timestamp=None, image_path="", description="", activity="", apps=[], topics=[], raw_response=None
)
BAR = Bar(x=100, y=50, width=2, height=16)


def frame(position: int) -> Frame:
    return Frame(position, ImageRef(image_path=f"/{position}"))


def result(of: Frame, error: str | None = None) -> FrameResult:
    return msgspec.structs.replace(RESULT, index=of.position, error=error)


class Job:
    """A machine whose comparisons are answered from what each frame shows."""

    def __init__(self, shows: list[str], *, near: bool = True) -> None:
        self.machine = Dedupe(near=near)
        self.frames = [frame(i) for i in range(len(shows))]
        self.shows = shows
        self.described: list[int] = []
        self.followed: dict[int, FrameResult | None] = {}

    def arrive(self, position: int, content: str | None = None) -> None:
        self.take(self.machine.arrived(self.frames[position], content or f"bytes of {position}"))

    def take(self, decisions: Iterator[Decision]) -> None:
        for decision in list(decisions):
            match decision:
                case Describe(found):
                    self.described.append(found.position)
                case Follow(found, known):
                    self.followed[found.position] = known
                case Compare(found, reference):
                    one, other = self.shows[reference.position], self.shows[found.position]
                    bar = BAR if {one, other} == {one.rstrip("|"), one.rstrip("|") + "|"} else None
                    self.take(self.machine.compared(same=one == other, bar=bar))

    def run(self) -> list[int]:
        for position in range(len(self.shows)):
            self.arrive(position)
        return self.described


def test_each_is_compared_with_the_last_described_one() -> None:
    assert Job(["a", "a", "b", "b", "a", "a"]).run() == [0, 2, 4]


def test_decisions_wait_for_the_frames_before() -> None:
    job = Job(["a", "b", "b", "b"])
    job.arrive(3)
    job.arrive(1)
    assert job.described == []
    job.arrive(0)
    assert job.described == [0, 1]
    job.take(job.machine.missing(2))
    assert (job.described, job.followed) == ([0, 1], {3: None})


def test_equal_bytes_need_no_order_and_no_comparison() -> None:
    job = Job(["a"] * 3, near=False)
    for position in (2, 0, 1):
        job.arrive(position, "same")
    assert (job.described, sorted(job.followed)) == ([2], [0, 1])
    done = job.machine.settled(job.frames[2], result(job.frames[2]))
    assert [follower.position for follower in done.followers] == [0, 1]
    job.arrive(1, "same")
    known = job.followed[1]
    assert known is not None
    assert known.index == 2


def test_a_slow_drift_does_not_add_up() -> None:
    class Drift(Job):
        def take(self, decisions: Iterator[Decision]) -> None:
            for decision in list(decisions):
                match decision:
                    case Describe(found):
                        self.described.append(found.position)
                    case Follow():
                        pass
                    case Compare(found, reference):
                        self.take(self.machine.compared(same=found.position - reference.position < 3, bar=None))

    assert Drift(["?"] * 10).run() == [0, 3, 6, 9]


def test_a_slow_drift_does_not_add_up_over_what_comes_again() -> None:
    values = [0, 2, 100, 2, 4]

    class Drift(Job):
        def take(self, decisions: Iterator[Decision]) -> None:
            for decision in list(decisions):
                match decision:
                    case Describe(found):
                        self.described.append(values[found.position])
                    case Follow():
                        pass
                    case Compare(found, reference):
                        apart = abs(values[found.position] - values[reference.position])
                        self.take(self.machine.compared(same=apart < 3, bar=None))

    job = Drift(["?"] * len(values))
    for position, value in enumerate(values):
        job.arrive(position, str(value))
    assert job.described == [0, 100, 4]


def test_who_is_like_one_that_has_failed_meanwhile_is_described() -> None:
    machine = Dedupe(near=True)
    one, copy, other = (frame(position) for position in range(3))
    assert list(machine.arrived(one, "bytes")) == [Describe(one)]
    assert list(machine.arrived(copy, "bytes")) == [Follow(copy, None)]
    assert list(machine.arrived(other, "others")) == [Compare(other, one)]
    assert machine.settled(one, result(one, "no")).substitute is copy
    assert machine.settled(copy, result(copy, "no")).followers == []
    assert list(machine.compared(same=True, bar=None)) == [Describe(other)]


def test_a_cursor_is_known_once_it_has_come_and_gone() -> None:
    # Off, on, off: it blinks. From there on neither is a change, with other text around it too.
    assert Job(["a", "a|", "a", "a|", "b", "b|", "b"]).run() == [0, 1, 4]
    # A character that looks like one and stays is text.
    assert Job(["a", "a|", "a|", "ab", "ab|"]).run() == [0, 1, 3, 4]


def test_a_cursor_is_known_by_equal_bytes_too() -> None:
    job = Job(["a", "a|", "a", "a|", "b", "b|"])
    for position, shows in enumerate(job.shows):
        job.arrive(position, shows)
    assert job.described == [0, 1, 4]


def test_the_first_duplicate_takes_the_place_of_one_that_failed_and_the_second_failure_is_final() -> None:
    job = Job(["a"] * 5)
    for position in range(4):
        job.arrive(position)
    first = job.machine.settled(job.frames[0], result(job.frames[0], "failed"))
    assert (first.followers, first.substitute) == ([], job.frames[1])
    job.arrive(1)  # opened again
    assert job.described == [0, 1]
    second = job.machine.settled(job.frames[1], result(job.frames[1], "failed again"))
    assert [follower.position for follower in second.followers] == [2, 3]
    assert second.substitute is None
    job.arrive(4)
    assert job.described == [0, 1, 4]


def test_a_place_that_is_free_is_taken_by_who_comes_next() -> None:
    job = Job(["a"] * 3)
    job.arrive(0)
    assert job.machine.settled(job.frames[0], result(job.frames[0], "failed")).substitute is None
    job.arrive(1)
    job.arrive(2)
    assert (job.described, job.followed) == ([0, 1], {2: None})


class DedupeMachine(RuleBasedStateMachine):
    """Frames arrive and are answered in any order: each is settled once, with a text of what it shows."""

    @initialize(
        shows=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
        near=st.booleans(),
        missing=st.sets(st.integers(0, 11)),
        exact=st.booleans(),
    )
    def begin(self, shows: list[str], near: bool, missing: set[int], exact: bool) -> None:
        self.shows = shows
        self.exact = exact
        self.machine = Dedupe(near=near)
        self.frames = [frame(i) for i in range(len(shows))]
        self.coming = list(range(len(shows)))
        self.lost = {position for position in missing if position < len(shows)}
        self.running: list[int] = []
        self.comparing: tuple[int, int] | None = None
        self.waiting: set[int] = set()
        self.settled: dict[int, tuple[str, bool]] = {}
        self.failures = 0

    @rule(data=st.data())
    @precondition(lambda self: self.coming)
    def arrive(self, data: st.DataObject) -> None:
        position = data.draw(st.sampled_from(self.coming))
        self.coming.remove(position)
        if position in self.lost:
            self.settle(position, "none", failed=True)
            self.take(self.machine.missing(position))
        else:
            self.waiting.add(position)
            content = self.shows[position] if self.exact else position
            self.take(self.machine.arrived(self.frames[position], content))

    @rule()
    @precondition(lambda self: self.comparing is not None)
    def compare(self) -> None:
        assert self.comparing is not None
        (position, reference), self.comparing = self.comparing, None
        assert reference in self.settled or reference in self.running or reference in self.waiting
        self.take(self.machine.compared(same=self.shows[position] == self.shows[reference], bar=None))

    @rule(data=st.data(), failed=st.booleans())
    @precondition(lambda self: self.running)
    def answer(self, data: st.DataObject, failed: bool) -> None:
        position = data.draw(st.sampled_from(self.running))
        self.running.remove(position)
        self.failures += failed
        self.settle(position, self.shows[position], failed=failed)
        outcome = self.machine.settled(self.frames[position], result(self.frames[position], "x" if failed else None))
        for follower in outcome.followers:
            self.waiting.remove(follower.position)
            self.settle(follower.position, self.shows[position], failed=failed)
        if outcome.substitute is not None:
            self.take(self.machine.arrived(outcome.substitute, "opened again"))

    @rule()
    @precondition(lambda self: not (self.coming or self.running or self.comparing))
    def rest(self) -> None:
        """Nothing is left to do."""

    def take(self, decisions: Iterator[Decision]) -> None:
        for decision in list(decisions):
            match decision:
                case Describe(found):
                    self.waiting.remove(found.position)
                    self.running.append(found.position)
                case Follow(found, known):
                    if known is not None:
                        self.waiting.remove(found.position)
                        self.settle(found.position, self.shows[known.index], failed=known.error is not None)
                case Compare(found, reference):
                    assert self.comparing is None
                    self.comparing = found.position, reference.position

    def settle(self, position: int, shows: str, *, failed: bool) -> None:
        assert position not in self.settled
        assert failed or shows == self.shows[position]
        self.settled[position] = shows, failed

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if hasattr(self, "coming") and not (self.coming or self.running or self.comparing):
            assert len(self.settled) == len(self.shows)


TestDedupeMachine = DedupeMachine.TestCase
TestDedupeMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
