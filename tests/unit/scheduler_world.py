"""A scheduler with its ports, moved by hand, and the rules of a state machine that moves it in any order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from vlmd_bridge import record
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.jobs.scheduler import Scheduler
from vlmd_bridge.jobs.work import TerminalLine
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.image_messages import Compare, Likeness, Luma, Prepare, Prepared, Reference
from vlmd_bridge.workers.messages import (
    Count,
    EngineInfo,
    Failed,
    Finished,
    ImageSpec,
    Picture,
    Remove,
    Removed,
    Start,
    Text,
)
from vlmd_protocol.messages import BatchLine, DescribeParams, ErrorLine, ImageRef, Line

WIDTH = 3
SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)
INFO = EngineInfo(
    name="m", path="", backend="fake", model_type="fake", width=WIDTH, context_tokens=1000, weight_bytes=0,
    dtype="none", device="none", blas="none", threads=1, load_s=0, versions={}, image_spec=SPEC,
)  # fmt: skip


@dataclass
class ListSink:
    """Keeps the lines of one request."""

    lines: list[Line] = field(default_factory=list)
    ended: bool = False
    writable: bool = True

    def send(self, line: Line) -> None:
        assert not self.ended
        self.lines.append(line)

    def end(self, line: TerminalLine) -> None:
        self.send(line)
        self.ended = True

    @property
    def results(self) -> list[Any]:
        return [result for line in self.lines if isinstance(line, BatchLine) for result in line.results]


@dataclass
class Ports:
    """All ports of the scheduler: keeps what it asks for.

    Attributes:
        pictures: those that were not answered, in the queue or with a process.
        opening: those of them that are with a process, and cannot be withdrawn.
        refreshed: how a picture's request is brought up to date before it is sent, which here is at once.
    """

    pictures: dict[int, Prepare] = field(default_factory=dict)
    opening: set[int] = field(default_factory=set)
    front: set[str] = field(default_factory=set)
    comparing: list[Compare] = field(default_factory=list)
    running: dict[int, Start] = field(default_factory=dict)
    removals: set[int] = field(default_factory=set)
    refreshed: Callable[[Prepare], Prepare] = lambda request: request

    def prepare(self, request: Prepare, *, front: bool) -> None:
        self.pictures[request.seq] = self.refreshed(request)
        if front:
            self.front.add(request.path)

    def withdraw(self, seqs: Collection[int]) -> set[int]:
        withdrawn = self.pictures.keys() & set(seqs) - self.opening
        for seq in withdrawn:
            del self.pictures[seq]
        return withdrawn

    def compare(self, request: Compare) -> None:
        self.comparing.append(request)

    def send(self, message: Start | Count | Remove) -> None:
        if isinstance(message, Start):
            self.running[message.seq] = message
        elif isinstance(message, Remove):
            self.removals.add(message.seq)


class World:
    """A scheduler with its ports, moved by hand. Each picture's pixels are its path, so answers can be checked."""

    def __init__(self, arena_bytes: int = 1024 * 1024) -> None:
        self.arena = Arena(arena_bytes)
        self.ports = Ports()
        self.scheduler = Scheduler(self.arena, self.ports)
        self.ports.refreshed = self.scheduler.refreshed
        self.lane = self.scheduler.add_lane("m", self.ports)
        self.written: dict[int, str] = {}
        self.inferred: list[str] = []

    @staticmethod
    def shows(path: str) -> str:
        """What an engine says of the picture."""
        return path

    def job(self, paths: list[str], *, model: str = "m", **params: Any) -> tuple[DescribeJob, ListSink]:
        sink = ListSink()
        images = [ImageRef(image_path=path) for path in paths]
        job = DescribeJob(1, DescribeParams(images=images, **params), sink, client=id(sink))
        self.scheduler.submit(model, job)
        return job, sink

    def picture_done(self, seq: int) -> None:
        request = self.ports.pictures.pop(seq)
        self.ports.opening.discard(seq)
        if request.path.startswith("bad"):
            self.scheduler.picture_failed(seq, "image_invalid", f"{request.path} is bad")
            return
        self.written[request.offset] = request.path
        luma = self.luma(request)
        self.scheduler.prepared(
            Prepared(
                seq=seq, width=32, height=32, source_width=1, source_height=1, digest=request.path.encode(),
                prepare_s=0, luma=luma, likeness=self.likeness(request.reference, luma),
            )
        )  # fmt: skip

    def luma(self, request: Prepare) -> Luma | None:
        """Write down what the picture is compared by, where it is asked for."""
        if request.luma_offset is None:
            return None
        self.written[request.luma_offset] = request.path
        return Luma(offset=request.luma_offset, width=1, height=1)

    def likeness(self, reference: Reference | None, other: Luma | None) -> Likeness | None:
        """Compare by what the pictures show."""
        if reference is None or other is None:
            return None
        one, same = (self.shows(self.written[luma.offset]) for luma in (reference.luma, other))
        return Likeness(same=one == same)

    def answer(self, seq: int, *, cut: bool = False) -> None:
        start = self.ports.running.pop(seq)
        self.ports.removals.discard(seq)
        paths = [self.written[part.offset] for part in start.parts if isinstance(part, Picture)]
        self.inferred += paths
        records = [record.Record(description=self.shows(path), activity="a", apps=(), topics=()) for path in paths]
        first = start.parts[0]
        labelled = isinstance(first, Text) and first.text.startswith("Frame 1")
        text = record.format_interleaved(records) if labelled else record.format_record(records[0])
        self.scheduler.finished(
            self.lane,
            Finished(
                seq=seq, text=text[: len(text) // 2] if cut else text, finish_reason="length" if cut else "stop",
                prompt_tokens=1, completion_tokens=1, prefill_s=0, decode_s=0,
            ),
        )  # fmt: skip

    def fail(self, seq: int) -> None:
        del self.ports.running[seq]
        self.ports.removals.discard(seq)
        self.scheduler.failed(self.lane, Failed(seq=seq, code="worker_error", error="no"))

    def fail_together(self) -> None:
        """A step of all that runs raises."""
        failures = [
            Failed(seq=seq, code="worker_error", error="boom", together=len(self.ports.running) > 1)
            for seq in self.ports.running
        ]
        self.ports.running.clear()
        self.ports.removals.clear()
        for failure in failures:
            self.scheduler.failed(self.lane, failure)

    def removed(self, seq: int) -> None:
        self.ports.removals.discard(seq)
        del self.ports.running[seq]
        self.scheduler.removed(self.lane, Removed(seq=seq))

    def crash(self) -> None:
        self.ports.running.clear()
        self.ports.removals.clear()
        self.scheduler.engine_lost(self.lane)

    def forget(self) -> None:
        """Give back what outlives a job."""

    def run_all(self) -> None:
        while self.ports.pictures or self.ports.running:
            for seq in list(self.ports.pictures):
                self.picture_done(seq)
            for seq in list(self.ports.running):
                self.answer(seq)


class LaneMachine(RuleBasedStateMachine):
    """The rules of an engine that comes and goes, of pictures, answers and cancels; jobs are a subclass's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.up = False
        self.jobs: list[tuple[DescribeJob, ListSink, list[str]]] = []

    @precondition(lambda self: not self.up)
    @rule()
    def ready(self) -> None:
        self.up = True
        self.world.scheduler.engine_ready(self.world.lane, INFO)

    @precondition(lambda self: self.up)
    @rule()
    def crash(self) -> None:
        self.up = False
        self.world.crash()

    @precondition(lambda self: self.world.ports.pictures)
    @rule(data=st.data())
    def open_picture(self, data: st.DataObject) -> None:
        self.world.ports.opening.add(data.draw(st.sampled_from(sorted(self.world.ports.pictures))))

    @precondition(lambda self: self.world.ports.pictures)
    @rule(data=st.data())
    def picture(self, data: st.DataObject) -> None:
        self.world.picture_done(data.draw(st.sampled_from(sorted(self.world.ports.pictures))))

    @precondition(lambda self: self.world.ports.running)
    @rule(data=st.data(), what=st.sampled_from(["answer", "answer", "cut", "fail"]))
    def engine(self, data: st.DataObject, what: str) -> None:
        seq = data.draw(st.sampled_from(sorted(self.world.ports.running)))
        if what == "fail":
            self.world.fail(seq)
        else:
            self.world.answer(seq, cut=what == "cut")

    @precondition(lambda self: self.world.ports.running)
    @rule()
    def step_raises(self) -> None:
        self.world.fail_together()

    @precondition(lambda self: self.world.ports.removals)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.world.removed(data.draw(st.sampled_from(sorted(self.world.ports.removals))))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job, _, _ = data.draw(st.sampled_from(self.jobs))
        if not job.ended:
            self.world.scheduler.cancel(job)

    def teardown(self) -> None:
        """Bring everything to its end; each job has to come to its own, and nothing may be left."""
        world = self.world
        if not self.up:
            world.scheduler.engine_ready(world.lane, INFO)
        for _, sink, _ in self.jobs:
            sink.writable = True
        world.scheduler.pump()
        for seq in list(world.ports.removals):
            world.removed(seq)
        world.run_all()
        for job, sink, paths in self.jobs:
            assert job.ended
            assert isinstance(sink.lines[-1], ErrorLine | BatchLine)
            assert isinstance(sink.lines[-1], ErrorLine) or len(sink.results) == len(paths)
        world.forget()
        assert world.arena.taken == 0
        assert world.scheduler.queue_status().jobs == 0
        world.arena.close()
