"""Which frames of a job need no inference of their own: a pure state machine.

Frames of equal bytes share one text. With `near` so do frames that differ from the last described one by nothing that
counts; decisions then are made in the order of the positions, one comparison at a time, so that each frame is compared
with what was described and a slow drift does not add up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.workers.image_messages import Bar
from vlmd_protocol.messages import FrameResult

# Distinct pictures of which a later copy is recognised: some megabytes of text at most.
_MAX_KNOWN: Final = 4096

# Those of them that the next request of a series takes over: there may be many series.
_MAX_PASSED_ON: Final = 1024

# An original that fails is replaced by its first duplicate, once: what ends an engine twice is in the picture.
_MAX_FAILURES: Final = 2

# By how much a codec's noise moves the edge of a bar, in pixels.
_BAR_SLACK: Final = 1


@dataclass(slots=True, eq=False)
class Group:
    """Frames that carry one text.

    Attributes:
        original: the frame that is described, None after it failed until a duplicate takes its place.
        content: of the original, as `Dedupe.arrived` was told it.
        followers: those that wait for it, in order.
        result: of the original, once it is settled for good.
        failures: originals that failed.
    """

    original: Frame | None
    content: Hashable
    followers: list[Frame] = field(default_factory=list)
    result: FrameResult | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Describe:
    """The frame is an original."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Follow:
    """The frame waits for the original of its group, or has its result at once where that is not None."""

    frame: Frame
    result: FrameResult | None


@dataclass(frozen=True, slots=True)
class Compare:
    """Whether `frame` differs from `reference` is to be told to `compared`."""

    frame: Frame
    reference: Frame


Decision: TypeAlias = Describe | Follow | Compare


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a frame that is settled: frames to settle with its result, and one to take its place."""

    followers: list[Frame]
    substitute: Frame | None = None


_NOTHING: Final = Outcome([])


class Dedupe:
    """The frames of one job, by what they show.

    Attributes:
        near: whether frames that are nearly equal share a text too.
        cursors: bars of the size of each text cursor that was seen to blink.
    """

    def __init__(self, *, near: bool) -> None:
        self.near = near
        self._known: OrderedDict[Hashable, Group] = OrderedDict()
        self._originals: dict[int, Group] = {}
        self._arrived: dict[int, tuple[Frame, Hashable] | None] = {}
        self._next = 0
        self._comparing: tuple[Frame, Hashable] | None = None
        self._reference: tuple[Frame, Group] | None = None
        self._appeared: tuple[Bar, Group] | None = None
        self.cursors: list[Bar] = []

    @property
    def reference(self) -> Frame | None:
        """The frame that the next one is compared with."""
        return None if self._reference is None else self._reference[0]

    def arrived(self, frame: Frame, content: Hashable) -> Iterator[Decision]:
        """Take a frame whose picture is there; `content` is equal for frames that may share a text whatever else."""
        if (group := self._originals.get(frame.position)) is not None:  # it took a failed one's place
            group.content = content
            yield Describe(frame)
        elif not self.near:
            yield self._decide(frame, content)
        else:
            self._arrived[frame.position] = frame, content
            yield from self._advance()

    def waiting(self) -> Iterator[Frame]:
        """Yield the frames that are there and come next, in order."""
        position = self._next
        while position in self._arrived:
            if (arrived := self._arrived[position]) is not None:
                yield arrived[0]
            position += 1

    def missing(self, position: int) -> Iterator[Decision]:
        """Pass over a frame whose picture could not be read."""
        if self.near and position >= self._next:
            self._arrived[position] = None
            yield from self._advance()

    def compared(self, *, same: bool, bar: Bar | None) -> Iterator[Decision]:
        """Take the answer to the last `Compare`. `bar` is an upright bar that is the only difference."""
        assert self._comparing is not None
        assert self._reference is not None
        (frame, content), self._comparing = self._comparing, None
        alike = same or (bar is not None and self._is_cursor(bar))
        if alike and _lives(self._reference[1]):  # it may have failed meanwhile
            yield self._join(frame, content, self._reference[1])
        else:
            before = self._reference[1]
            yield self._found(frame, content)
            self._appeared = None if bar is None else (bar, before)
        yield from self._advance()

    def settled(self, frame: Frame, result: FrameResult) -> Outcome:
        """Take the final result of a frame that was to be described; one that was not changes nothing."""
        if (group := self._originals.pop(frame.position, None)) is None:
            return _NOTHING
        if result.error is not None:
            group.failures += 1
            if group.failures < _MAX_FAILURES:
                group.original = group.followers.pop(0) if group.followers else None
                if group.original is not None:
                    self._originals[group.original.position] = group
                return Outcome([], group.original)
        group.result = result
        followers, group.followers = group.followers, []
        return Outcome(followers)

    def pass_on(self) -> Dedupe:
        """Return what the next part of the recording begins with, whose positions count from 0 again.

        Only once every frame is settled. What failed is tried afresh there.
        """
        passed = Dedupe(near=self.near)
        settled = [(content, group) for content, group in self._known.items() if _succeeded(group)]
        passed._known.update(settled[-_MAX_PASSED_ON:])
        passed.cursors = self.cursors
        if self._reference is not None and _succeeded(self._reference[1]):
            passed._reference, passed._appeared = self._reference, self._appeared
        return passed

    # --- inside -----------------------------------------------------------------------------------------------

    def _advance(self) -> Iterator[Decision]:
        while self._comparing is None and self._next in self._arrived:
            arrived = self._arrived.pop(self._next)
            self._next += 1
            if arrived is not None:
                yield self._decide(*arrived)

    def _decide(self, frame: Frame, content: Hashable) -> Decision:
        if (group := self._known.get(content)) is not None:
            self._known.move_to_end(content)
            return self._join(frame, content, group, exact=True)
        if self._reference is not None and _lives(self._reference[1]):
            self._comparing = frame, content
            return Compare(frame, self._reference[0])
        return self._found(frame, content)

    def _found(self, frame: Frame, content: Hashable) -> Describe:
        """Begin a group."""
        group = Group(frame, content)
        self._remember(content, group)
        return self._describe(frame, group)

    def _join(self, frame: Frame, content: Hashable, group: Group, *, exact: bool = False) -> Decision:
        self._remember(content, group)
        if group.original is None:
            group.original, group.content = frame, content
            return self._describe(frame, group)
        repeats = exact and content == group.content  # not merely what was like it: a slow drift would add up
        if repeats and self.near and (self._reference is None or self._reference[1] is not group):
            # It shows what was described before: what comes next is compared with this, not with what came between.
            self._refer(frame, group)
        if group.result is None:
            group.followers.append(frame)
        return Follow(frame, group.result)

    def _describe(self, frame: Frame, group: Group) -> Describe:
        self._originals[frame.position] = group
        if self.near:
            self._refer(frame, group)
        return Describe(frame)

    def _refer(self, frame: Frame, group: Group) -> None:
        if self._appeared is not None and (self._reference is None or self._reference[1] is not group):
            bar, before = self._appeared
            if before is group:  # exactly what was there before the bar: it has come and gone
                self._learn(bar)
            self._appeared = None
        self._reference = frame, group

    def _remember(self, content: Hashable, group: Group) -> None:
        self._known[content] = group
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _is_cursor(self, bar: Bar) -> bool:
        """Whether a bar is a text cursor that blinks: one of its size has come and gone in one place."""
        if self._appeared is not None and _close(bar, self._appeared[0], place=True):
            self._learn(bar)
        return any(_close(bar, cursor, place=False) for cursor in self.cursors)

    def _learn(self, bar: Bar) -> None:
        if not any(_close(bar, cursor, place=False) for cursor in self.cursors):
            self.cursors.append(bar)


def _lives(group: Group) -> bool:
    """Whether a near-duplicate may join: what failed for good is tried afresh with another picture."""
    return group.result is None or group.result.error is None


def _succeeded(group: Group) -> bool:
    return group.result is not None and group.result.error is None


def _close(one: Bar, other: Bar, *, place: bool) -> bool:
    pairs = [(one.width, other.width), (one.height, other.height)]
    if place:
        pairs += [(one.x, other.x), (one.y, other.y)]
    return all(abs(a - b) <= _BAR_SLACK for a, b in pairs)
