"""Stands between a job's pictures and the engine: lets through only the prompts whose answer is not known.

First the frames of the job among themselves (`Dedupe`), then the result store.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import msgspec

from vlmd_bridge.jobs.comparisons import Comparisons
from vlmd_bridge.jobs.dedupe import Compare, Decision, Dedupe, Describe, Follow
from vlmd_bridge.jobs.series import Legacy, Series
from vlmd_bridge.jobs.store import JobStore, StoredRecord
from vlmd_bridge.jobs.work import Comparison, Decide, Frame, Prompt, StoreEntry
from vlmd_bridge.workers.image_messages import Likeness, Luma, Reference
from vlmd_bridge.workers.messages import Start
from vlmd_protocol.messages import DedupeOptions, DescribeParams, FrameResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Where answers may be known from, beside the job itself: store, comparisons of pictures, earlier requests."""

    store: JobStore | None = None
    comparisons: Comparisons | None = None
    series: Series | None = None


@dataclass(slots=True, eq=False)
class _Held:
    """A prompt whose pictures are there and whose fate is open."""

    prompt: Prompt
    start: Start
    decide: Decide


@dataclass(slots=True, eq=False)
class Gate:
    """The gate of one job.

    Attributes:
        params: of the job.
        known: see `Known`.
        settle: ends a frame with its result.
        blank: returns the result of a frame with everything but its text.
    """

    params: DescribeParams
    known: Known
    settle: Callable[[Frame, FrameResult], None]
    blank: Callable[[Frame], FrameResult]
    late: list[Frame] = field(default_factory=list)
    again: list[Frame] = field(default_factory=list)
    _dedupe: Dedupe | None = None
    _held: dict[int, _Held] = field(default_factory=dict)
    _luma: tuple[Frame, Luma] | None = None
    _ended: bool = False

    def __post_init__(self) -> None:
        """See which frames may share a text."""
        # Frames of an interleaved prompt explain each other: none of them stands for itself.
        if self.params.mode == "parallel" and self.params.dedupe is not False:
            self._dedupe = Dedupe(near=self.near)

    @property
    def near(self) -> bool:
        """Whether frames are compared."""
        asked = self.params.dedupe not in (None, False) and self.params.mode == "parallel"
        return asked and self.known.comparisons is not None

    def begin(self) -> None:
        """Go on from where the series stands. Before the first frame."""
        series = self.known.series
        if series is not None and (legacy := series.take()) is not None:
            self._dedupe, self._luma = legacy.dedupe, legacy.luma

    def reference_for(self, frame: Frame) -> Reference | None:
        """Return what the frame is compared with as soon as its picture is there.

        By then there may be another reference, and this one's place in the arena may be another picture's: the outcome
        counts only as long as this one is the reference.
        """
        frame.comparison = None
        if self._luma is None:
            return None
        frame.comparison = Comparison(self._luma[0])
        return self._reference()

    def relieve(self) -> bool:
        """Give up the luminance of the reference: the next frame is described instead of compared. False without one.

        Not while it is compared with: its place in the arena may become another picture's.
        """
        held = self._luma is not None
        self._hold_reference(None)
        return held

    def decoded(self, prompt: Prompt, start: Start, decide: Decide) -> None:
        """Call `decide` once it is known whether `prompt` is for the engine."""
        held = _Held(prompt, start, decide)
        frame = prompt.frames[0]
        if self._dedupe is None or not frame.digest:
            self._look_up(held)
            return
        self._held[frame.position] = held
        self._act(self._dedupe.arrived(frame, self._content(frame)))

    def missing(self, frame: Frame) -> None:
        """Pass over a frame whose picture could not be read."""
        if self._dedupe is not None:
            self._act(self._dedupe.missing(frame.position))

    def settled(self, frame: Frame, result: FrameResult) -> None:
        """Take the result of a frame: keep it, and pass it on to the frames that wait for it."""
        self._keep(frame, result)
        if self._dedupe is None:
            return
        outcome = self._dedupe.settled(frame, result)
        for follower in outcome.followers:
            self.late.append(follower)
            self._copy(follower, result)
        if outcome.substitute is not None:
            self.again.append(outcome.substitute)

    def end(self, *, complete: bool) -> None:
        """Forget everything: the job has ended. If all its frames are delivered, the series may go on from here."""
        self._ended = True
        self._held.clear()
        self.again.clear()
        if complete and self.known.series is not None and self._dedupe is not None:
            passed, luma = self._dedupe.pass_on(), None
            if self._luma is not None and passed.reference is self._luma[0]:
                luma, self._luma = self._luma, None
            self.known.series.leave(Legacy(dedupe=passed, luma=luma))
        self._hold_reference(None)

    # --- among the job's frames -------------------------------------------------------------------------------

    def _content(self, frame: Frame) -> Hashable:
        """Return what makes two frames the same question.

        The built-in instructions ask for what the picture shows. A caller's own may ask for the frame's time, which
        stands in its label; then only frames of one time are the same, unless duplicates were asked to be left out.
        """
        own = self.params.prompt is not None or self.params.schema is not None
        return (frame.digest, frame.ref.timestamp) if own and not self.params.dedupe else frame.digest

    def _act(self, decisions: Iterator[Decision]) -> None:
        for decision in decisions:
            if self._ended:
                return
            match decision:
                case Describe(frame):
                    self._refer()
                    frame.comparison = None  # it names a reference, which named one: all of the job's would be kept
                    self._look_up(self._held.pop(frame.position))
                case Follow(frame, result):
                    self._refer()
                    frame.comparison = None
                    held = self._held.pop(frame.position)
                    if result is not None:
                        self._copy(frame, result)
                    held.decide(False)
                case Compare(frame, _):
                    self._compare(frame)

    def _compare(self, frame: Frame) -> None:
        """Tell the state machine how the frame is like the reference, and have it compared first if it was not yet."""
        dedupe, comparisons = self._dedupe, self.known.comparisons
        assert dedupe is not None
        assert comparisons is not None
        if frame.luma is None or self._luma is None:
            self._act(dedupe.compared(same=False, bar=None))
            return
        reference = self._luma[0]
        if (found := frame.comparison) is not None and found.reference is reference and found.like is not None:
            self._act(dedupe.compared(same=found.like.same, bar=found.like.bar))
            return
        # With those that wait behind it, which are like the same reference more often than not.
        frames = [frame, *(next_ for next_ in dedupe.waiting() if next_.luma is not None)]

        def verdict(likenesses: tuple[Likeness, ...]) -> None:
            if self._ended:
                return
            for compared, like in zip(frames, likenesses, strict=False):
                compared.comparison = Comparison(reference, like)
            self._act(dedupe.compared(same=likenesses[0].same, bar=likenesses[0].bar))

        comparisons.ask(self._reference(), [each.luma for each in frames if each.luma is not None], verdict)

    def _reference(self) -> Reference:
        assert self._dedupe is not None
        assert self._luma is not None
        options = self.params.dedupe if isinstance(self.params.dedupe, DedupeOptions) else DedupeOptions()
        return Reference(luma=self._luma[1], threshold=options.threshold, cursors=tuple(self._dedupe.cursors))

    def _refer(self) -> None:
        """Keep the luminance of the frame that the next one is compared with."""
        if self._dedupe is not None and self._dedupe.near:
            reference = self._dedupe.reference
            if reference is not None and (self._luma is None or self._luma[0] is not reference):
                self._hold_reference(reference)

    def _hold_reference(self, frame: Frame | None) -> None:
        if self._luma is not None and self.known.comparisons is not None:
            self.known.comparisons.give_back(self._luma[1])
        self._luma = None
        if frame is not None and frame.luma is not None:
            self._luma = frame, frame.luma
            frame.luma = frame.luma_offset = None  # no longer the frame's to give back

    def _copy(self, frame: Frame, result: FrameResult) -> None:
        frame.source = "duplicate"
        blank = self.blank(frame)
        self.settle(
            frame,
            msgspec.structs.replace(
                result,
                index=blank.index,
                timestamp=blank.timestamp,
                image_path=blank.image_path,
                id=blank.id,
                duplicate_of=result.index if self.params.dedupe and result.error is None else None,
            ),
        )

    # --- the store --------------------------------------------------------------------------------------------

    def _look_up(self, held: _Held) -> None:
        store, prompt = self.known.store, held.prompt
        frames = prompt.frames
        if store is None or not all(frame.digest and frame.picture is not None for frame in frames):
            held.decide(True)
            return
        digests = {frame.picture.offset: frame.digest for frame in frames if frame.picture is not None}
        request = store.request(held.start, digests)
        if request is None:
            held.decide(True)
            return

        def answer(records: list[StoredRecord] | None) -> None:
            if self._ended:
                return
            if records is None:
                entry = StoreEntry(request, dict.fromkeys(frame.position for frame in frames))
                for frame in frames:
                    frame.entry = entry
            else:
                for frame, record in zip(frames, records, strict=True):
                    frame.source = "store"
                    result = msgspec.structs.replace(record.fill(self.blank(frame)), cached=self.params.cache is True)
                    self.settle(frame, result)
            held.decide(records is None)

        store.look_up(request, len(frames), answer)

    def _keep(self, frame: Frame, result: FrameResult) -> None:
        entry, store = frame.entry, self.known.store
        if entry is None or store is None:
            return
        frame.entry = None
        if result.error is not None or result.raw_response is not None:
            return
        entry.results[frame.position] = result
        results = [kept for kept in entry.results.values() if kept is not None]
        if len(results) == len(entry.results):
            store.keep(entry.request, results)
