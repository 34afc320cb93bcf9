"""Texts, counts and frames together as a state machine: whatever ends the engine or a job, and whenever, each request
gets one terminal line, a streamed text is never told in two halves, and every range of the arena comes back.

``test_scheduler.py`` looks into frames; here the requests are of every kind, and end in every way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.scheduler_world import INFO, WIDTH, ListSink
from vlmd_bridge.jobs.conversation import Conversation
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.generate import CountJob, GenerateJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.work import Job
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.image_messages import Prepare, Prepared
from vlmd_bridge.workers.messages import Count, Counted, Delta, Failed, Finished, Remove, Removed, Start
from vlmd_protocol.messages import (
    DeltaLine,
    DescribeParams,
    ErrorLine,
    EventLine,
    GenerateLine,
    GenerateParams,
    ImageRef,
    PromptParams,
)

# Room for few pictures, so that admission waits for ranges now and then.
_ARENA_BYTES = 256 * 1024

# What the engine says of every prompt that streams, piece by piece.
_TEXT = "one two three"
_PIECES = ("one", " two", " three")


@dataclass
class Asked:
    """One request: its job, where its lines go, and how many pieces of its text the engine has told."""

    job: Job
    sink: ListSink
    told: int = 0


class Engine:
    """Both ports: keeps what the scheduler asks for."""

    def __init__(self) -> None:
        self.pictures: list[int] = []
        self.running: dict[int, Start | Count] = {}
        self.removals: set[int] = set()
        self.told: dict[int, int] = {}

    def prepare(self, request: Prepare, *, front: bool) -> None:
        self.pictures.append(request.seq)

    def withdraw(self, seqs: Collection[int]) -> set[int]:
        """Let only every other one go: the rest is with a process."""
        withdrawn = {seq for seq in self.pictures if seq in seqs and seq % 2}
        self.pictures = [seq for seq in self.pictures if seq not in withdrawn]
        return withdrawn

    def send(self, message: Start | Count | Remove) -> None:
        if isinstance(message, Remove):
            self.removals.add(message.seq)
        else:
            self.running[message.seq] = message

    def forget(self, seq: int) -> Start | Count:
        self.removals.discard(seq)
        self.told.pop(seq, None)
        return self.running.pop(seq)


def test_one_bad_picture_ends_a_prompt_and_the_others_are_not_opened() -> None:
    arena, engine, sink = Arena(_ARENA_BYTES), Engine(), ListSink()
    scheduler = Scheduler(arena, engine)
    scheduler.engine_ready(scheduler.add_lane("m", engine), INFO)
    params = GenerateParams(prompt="Say it.", images=[ImageRef(image_path=f"/{at}.png") for at in range(6)])
    scheduler.submit("m", GenerateJob(1, params, Conversation.from_params(params), sink, 1))
    scheduler.picture_failed(engine.pictures.pop(0), "image_timeout", "It took too long.")
    assert sink.ended
    # Of the six the first has failed and every other one that waited is out.
    assert len(engine.pictures) == arena.taken == 3 - engine.pictures[0] % 2
    while engine.pictures:
        scheduler.picture_failed(engine.pictures.pop(0), "image_timeout", "It took too long.")
    assert (arena.taken, scheduler.frames_done, scheduler.frames_failed) == (0, 0, 1)
    assert scheduler.jobs == []


def test_a_text_that_was_told_in_part_is_not_begun_again_after_a_failed_step() -> None:
    engine, sinks = Engine(), [ListSink(), ListSink()]
    scheduler = Scheduler(Arena(_ARENA_BYTES), engine)
    lane = scheduler.add_lane("m", engine)
    scheduler.engine_ready(lane, INFO)
    for number, sink in enumerate(sinks):
        params = GenerateParams(prompt="Say it.", stream=True)
        scheduler.submit("m", GenerateJob(number, params, Conversation.from_params(params), sink, number))
    told, untold = engine.running
    scheduler.delta(lane, Delta(seq=told, text="one"))
    for seq in (told, untold):
        engine.forget(seq)
        scheduler.failed(lane, Failed(seq=seq, code="worker_error", error="boom", together=True))
    last = sinks[0].lines[-1]
    assert isinstance(last, ErrorLine) and (last.code, last.retryable) == ("worker_crashed", True)
    assert "boom" in last.error
    assert (sinks[1].lines, len(engine.running)) == ([], 1)


def test_a_prompt_with_more_pictures_than_fit_is_told_so_in_its_own_terms() -> None:
    engine, sink = Engine(), ListSink()
    scheduler = Scheduler(Arena(_ARENA_BYTES), engine)
    scheduler.engine_ready(scheduler.add_lane("m", engine), INFO)
    asked = PromptParams(prompt="How many?", images=[ImageRef(image_path="/a.png")] * 17)
    scheduler.submit("m", CountJob(1, asked, Conversation.from_params(asked), sink, 1))
    (line,) = sink.lines
    assert isinstance(line, ErrorLine) and line.code == "invalid_params"
    assert "17 pictures" in line.error and "give the prompt fewer pictures" in line.error


class PromptMachine(RuleBasedStateMachine):
    """Requests of every kind; pieces, answers, failures, crashes, rests, cancels and slow readers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(_ARENA_BYTES)
        self.engine = Engine()
        self.scheduler = Scheduler(self.arena, self.engine)
        self.lane = self.scheduler.add_lane("m", self.engine)
        self.asked: list[Asked] = []
        self.scheduler.engine_ready(self.lane, INFO)

    # --- what a client does -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.asked) < 8)
    @rule(
        kind=st.sampled_from(["generate", "generate", "count", "describe"]),
        pictures=st.sampled_from([0, 0, 1, 3]),
        stream=st.sampled_from([True, True, False]),
        priority=st.sampled_from(["batch", "interactive"]),
    )
    def ask(self, kind: str, pictures: int, stream: bool, priority: str) -> None:
        sink, number = ListSink(), len(self.asked)
        images = [ImageRef(image_path=f"/{number}.{at}.png") for at in range(pictures)]
        job: Job
        if kind == "describe":
            job = DescribeJob(number, DescribeParams(images=images or [ImageRef(image_path="/a.png")]), sink, number)
        elif kind == "count":
            asked = PromptParams(prompt="How many?", images=images)
            job = CountJob(number, asked, Conversation.from_params(asked), sink, number)
        else:
            params = GenerateParams(
                prompt="Say it.",
                images=images,
                stream=stream,
                priority="batch" if priority == "batch" else "interactive",
            )
            job = GenerateJob(number, params, Conversation.from_params(params), sink, number)
        self.asked.append(Asked(job, sink))
        self.scheduler.submit("m", job)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), seldom=st.sampled_from([False, False, True]))
    def cancel(self, data: st.DataObject, seldom: bool) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        if seldom and not asked.job.ended:
            self.scheduler.cancel(asked.job)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), writable=st.booleans())
    def reader(self, data: st.DataObject, writable: bool) -> None:
        data.draw(st.sampled_from(self.asked)).sink.writable = writable
        self.scheduler.pump()

    # --- what the processes do --------------------------------------------------------------------------------

    @precondition(lambda self: self.lane.info is None)
    @rule()
    def ready(self) -> None:
        self.scheduler.engine_ready(self.lane, INFO)

    @precondition(lambda self: self.lane.info is not None)
    @rule(comes_back=st.sampled_from([True, True, False]))
    def crash(self, comes_back: bool) -> None:
        self.engine.running.clear()
        self.engine.removals.clear()
        self.engine.told.clear()
        self.scheduler.engine_lost(self.lane)
        if comes_back:
            self.scheduler.engine_ready(self.lane, INFO)

    @precondition(lambda self: any(isinstance(message, Start) for message in self.engine.running.values()))
    @rule()
    def step_raises(self) -> None:
        begun = [seq for seq, message in self.engine.running.items() if isinstance(message, Start)]
        for seq in begun:
            self.engine.forget(seq)
        for seq in begun:
            failure = Failed(seq=seq, code="worker_error", error="boom", together=len(begun) > 1)
            self.scheduler.failed(self.lane, failure)

    @precondition(lambda self: self.lane.info is None)
    @rule(seldom=st.sampled_from([False, False, False, True]))
    def rest(self, seldom: bool) -> None:
        if not seldom:
            return
        self.scheduler.fail_lane(self.lane, "engine_unavailable", "It crashed too often.")
        assert all(asked.job.ended for asked in self.asked)

    @precondition(lambda self: self.engine.pictures)
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]))
    def picture(self, data: st.DataObject, good: bool) -> None:
        seq = data.draw(st.sampled_from(self.engine.pictures))
        self.engine.pictures.remove(seq)
        if good:
            self.scheduler.prepared(
                Prepared(seq=seq, width=32, height=32, source_width=1, source_height=1, digest=b"", prepare_s=0)
            )
        else:
            self.scheduler.picture_failed(seq, "image_invalid", "no picture")

    @precondition(lambda self: any(self._streams(seq) for seq in self.engine.running))
    @rule()
    def step(self) -> None:
        for seq in list(self.engine.running):
            if self._streams(seq):
                self._tell(seq)

    @precondition(lambda self: self.engine.running)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def answer(self, data: st.DataObject, fails: bool) -> None:
        self._answer(data.draw(st.sampled_from(sorted(self.engine.running))), fails=fails)

    @precondition(lambda self: self.engine.removals)
    @rule()
    def acknowledge(self) -> None:
        seq = min(self.engine.removals)
        self.engine.forget(seq)
        self.scheduler.removed(self.lane, Removed(seq=seq))

    # --- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def the_engine_never_holds_more_than_its_credits(self) -> None:
        running = self.engine.running.values()
        assert sum(isinstance(message, Start) and not message.front for message in running) <= WIDTH + 2
        # Two more for what somebody waits for.
        assert len(running) <= WIDTH + 4

    @invariant()
    def a_streamed_text_is_one_text(self) -> None:
        for asked in self.asked:
            deltas = "".join(line.delta or "" for line in asked.sink.lines if isinstance(line, DeltaLine))
            assert _TEXT.startswith(deltas)
            last = asked.sink.lines[-1] if asked.sink.lines else None
            if isinstance(last, GenerateLine) and deltas:
                assert (last.text, deltas) == (_TEXT, _TEXT)

    @invariant()
    def a_request_has_ended_when_its_terminal_line_was_sent(self) -> None:
        # `ListSink` refuses a second one, and any line after it.
        assert all(asked.sink.ended == asked.job.ended for asked in self.asked)

    def teardown(self) -> None:
        if self.lane.info is None:
            self.scheduler.engine_ready(self.lane, INFO)
        for asked in self.asked:
            asked.sink.writable = True
        self.scheduler.pump()
        while self.engine.pictures or self.engine.running:
            while self.engine.pictures:
                seq = self.engine.pictures.pop(0)
                self.scheduler.picture_failed(seq, "image_invalid", "no picture")
            for seq in list(self.engine.running):
                if seq in self.engine.removals:
                    self.engine.forget(seq)
                    self.scheduler.removed(self.lane, Removed(seq=seq))
                elif seq in self.engine.running:
                    self._answer(seq, fails=False)
        for asked in self.asked:
            assert asked.job.ended
            last = asked.sink.lines[-1]
            assert not isinstance(last, DeltaLine | EventLine)
            assert last.done is True
        assert self.arena.taken == 0
        assert self.scheduler.queue_status().jobs == 0
        self.arena.close()

    def _streams(self, seq: int) -> bool:
        message = self.engine.running[seq]
        return isinstance(message, Start) and message.stream and self.engine.told.get(seq, 0) < len(_PIECES)

    def _tell(self, seq: int) -> None:
        told = self.engine.told.get(seq, 0)
        self.engine.told[seq] = told + 1
        self.scheduler.delta(self.lane, Delta(seq=seq, text=_PIECES[told]))

    def _answer(self, seq: int, *, fails: bool) -> None:
        # The engine tells all pieces of a text before its end.
        while not fails and self._streams(seq):
            self._tell(seq)
        message = self.engine.forget(seq)
        if fails:
            self.scheduler.failed(self.lane, Failed(seq=seq, code="worker_error", error="no"))
        elif isinstance(message, Count):
            self.scheduler.finished(self.lane, Counted(seq=seq, prompt_tokens=1, context_tokens=1000))
        else:
            finished = Finished(
                seq=seq, text=_TEXT, finish_reason="stop", prompt_tokens=1, completion_tokens=1, prefill_s=0, decode_s=0
            )
            self.scheduler.finished(self.lane, finished)


TestPromptMachine = PromptMachine.TestCase
TestPromptMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
