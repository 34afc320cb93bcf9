"""The one queue. Frames go queued → decoding → ready → running → done; credits bound every stretch of the way.

A pure state machine: it is told what happened, sends messages through two ports, and never waits. The daemon is the
only caller, from one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, Protocol

import msgspec

from vlmd_bridge.jobs.lane import EnginePort, Lane
from vlmd_bridge.jobs.work import Frame, FrameState, Job, Prompt
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES, Prepare, Prepared
from vlmd_bridge.workers.messages import (
    Counted,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    Picture,
    Remove,
    Removed,
    Start,
)
from vlmd_protocol.connection import error_line
from vlmd_protocol.messages import ErrorLine, QueueStatus

# A prompt during which the engine ended, or failed on all that ran, so often is given up.
_MAX_CRASHES = 2


class ImagePort(Protocol):
    """The image processes, as the scheduler sees them."""

    def prepare(self, request: Prepare, *, front: bool) -> None:
        """Queue a picture; `Scheduler.prepared` or `picture_failed` follows, once, unless it is withdrawn."""

    def withdraw(self, seqs: Collection[int]) -> set[int]:
        """Take pictures out of the queue and return which were in it: no answer comes for those."""


class Scheduler:
    """Moves every job's frames along its model's lane."""

    def __init__(self, arena: Arena, images: ImagePort) -> None:
        self.frames_done = 0
        self.frames_failed = 0
        self.frames_cached = 0
        self.frames_duplicate = 0
        self._arena = arena
        self._images = images
        self._lanes: dict[str, Lane] = {}
        self._seqs = itertools.count(1)
        self._pictures: dict[int, tuple[Lane, Prompt, Frame]] = {}

    # --- what the daemon says ---------------------------------------------------------------------------------

    def add_lane(self, model: str, engine: EnginePort) -> Lane:
        """Make the way for a model; its jobs wait until `engine_ready`."""
        lane = self._lanes[model] = Lane(model, engine)
        return lane

    def submit(self, model: str, job: Job) -> None:
        """Take a job."""
        lane = self._lanes[model]
        lane.turns.add(job)
        self._pump(lane)

    def cancel(self, job: Job) -> None:
        """End a job. What runs for it is removed from the engine; its slots are free once that is acknowledged."""
        job.cancel()
        self._clear(job)

    def end(self, job: Job, line: ErrorLine) -> None:
        """End a job with an error line of its own."""
        job.end_with(line)
        self._clear(job)

    def pump(self) -> None:
        """Look again: a reader has caught up."""
        for lane in self._lanes.values():
            self._pump(lane)

    @property
    def jobs(self) -> list[Job]:
        """The jobs under way."""
        return [job for lane in self._lanes.values() for job in lane.turns]

    def queue_status(self) -> QueueStatus:
        """Count frames by state."""
        lanes = list(self._lanes.values())
        return QueueStatus(
            jobs=len(self.jobs),
            queued=sum(job.waiting for job in self.jobs),
            decoding=sum(len(prompt.frames) for lane in lanes for prompt in lane.decoding),
            ready=sum(len(prompt.frames) for lane in lanes for prompt in [*lane.checking, *lane.ready, *lane.alone]),
            running=sum(len(prompt.frames) for lane in lanes for prompt in lane.running.values()),
        )

    # --- what the engine says ---------------------------------------------------------------------------------

    def engine_ready(self, lane: Lane, info: EngineInfo) -> None:
        """The engine takes work."""
        lane.info = info
        self._pump(lane)

    def engine_lost(self, lane: Lane) -> None:
        """The engine ended. What ran gets one more try each, alone; what ran twice is given up."""
        lane.info = None
        lost = list(lane.running.values())
        lane.running.clear()
        for prompt in lost:
            self._lost(lane, prompt, "The engine ended while this ran.")
        self._pump(lane)

    def fail_lane(self, lane: Lane, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        """The engine will not come back for now: end its jobs with an error each."""
        for job in list(lane.turns):
            self.end(job, error_line(job.id, message, code, data=data))

    def delta(self, lane: Lane, piece: Delta) -> None:
        """A sequence has more text."""
        if (prompt := lane.running.get(piece.seq)) is not None:
            prompt.job.delta(prompt, piece)

    def finished(self, lane: Lane, answer: Finished | Counted) -> None:
        """A sequence ended with its text."""
        if (prompt := lane.running.pop(answer.seq, None)) is None:
            return
        if prompt.job.ended:
            self._release(prompt)
        else:
            retries = prompt.job.finished(prompt, answer)
            lane.ready.extendleft(reversed(retries))
            self._leave(lane, prompt)
        self._pump(lane)

    def failed(self, lane: Lane, failure: Failed) -> None:
        """A sequence failed alone, or was lost with others because of one of them."""
        if (prompt := lane.running.pop(failure.seq, None)) is None:
            return
        if failure.together:
            self._lost(lane, prompt, f"The engine failed on this and others that ran beside it: {failure.error}")
        elif prompt.job.ended:
            self._release(prompt)
        else:
            self._give_up(lane, prompt, failure.code, failure.error)
        self._pump(lane)

    def removed(self, lane: Lane, removal: Removed) -> None:
        """A sequence is out of the engine."""
        if (prompt := lane.running.pop(removal.seq, None)) is not None:
            self._release(prompt)
            self._pump(lane)

    # --- what the image processes say -------------------------------------------------------------------------

    def prepared(self, picture: Prepared) -> None:
        """A picture stands in the arena."""
        lane, prompt, frame = self._pictures.pop(picture.seq)
        assert frame.offset is not None
        frame.picture = Picture(offset=frame.offset, width=picture.width, height=picture.height)
        frame.digest, frame.luma = picture.digest, picture.luma
        if frame.comparison is not None:
            frame.comparison.like = picture.likeness
        frame.state = FrameState.READY
        self._picture_arrived(lane, prompt)

    def refreshed(self, request: Prepare) -> Prepare:
        """Return `request` with what its picture is compared with now, when it is sent: it changes in the queue."""
        if request.luma_offset is None:
            return request
        _, prompt, frame = self._pictures[request.seq]
        return msgspec.structs.replace(request, reference=prompt.job.reference_for(frame))

    def picture_failed(self, seq: int, code: str, error: str) -> None:
        """A picture cannot be used: its frame fails, the prompt's others go on."""
        lane, prompt, frame = self._pictures.pop(seq)
        frame.state = FrameState.QUEUED
        if not prompt.job.ended:  # otherwise nobody is told, and it is neither done nor failed
            prompt.job.fail_frame(frame, code, error)
        if prompt.job.ended:
            self._withdraw(lane, prompt.job)
        self._picture_arrived(lane, prompt)

    # --- inside -----------------------------------------------------------------------------------------------

    def _pump(self, lane: Lane) -> None:
        """Move `lane`, and before it those that wait for ranges of the arena: some may have come back."""
        for other in self._lanes.values():
            if other.waits_for_room and other is not lane:
                self._move(other)
        self._move(lane)

    def _move(self, lane: Lane) -> None:
        if lane.info is None:
            return
        lane.waits_for_room = False
        self._start_ready(lane)
        width = lane.info.width
        while lane.ahead < 2 * width:
            # Batch work fills a width ahead of the engine; interactive work does not wait behind that.
            job = lane.turns.pick(interactive_only=lane.ahead >= width)
            if job is None:
                return
            if not self._decode_next(lane, job, lane.info):
                lane.waits_for_room = True
                return

    def _start_ready(self, lane: Lane) -> None:
        if lane.alone or lane.runs_alone:
            if lane.alone and not lane.running:
                self._start(lane, lane.alone.popleft())
            return
        while lane.ready:
            prompt = lane.next_ready()
            if not lane.takes(prompt):
                return
            lane.ready.remove(prompt)
            lane.interactive_streak = lane.interactive_streak + 1 if prompt.job.interactive else 0
            self._start(lane, prompt)

    def _start(self, lane: Lane, prompt: Prompt) -> None:
        seq = next(self._seqs)
        lane.running[seq] = prompt
        prompt.mark(FrameState.RUNNING)
        message = prompt.job.start_message(prompt, seq)
        if prompt.job.interactive and isinstance(message, Start):
            message = msgspec.structs.replace(message, front=True)
        lane.engine.send(message)

    def _decode_next(self, lane: Lane, job: Job, info: EngineInfo) -> bool:
        """Send the pictures of the job's next prompt to the image processes; False when the arena has no room."""
        spec = info.image_spec
        if job.frames_per_prompt == 0:
            lane.ready.append(job.next_prompt())
            self._start_ready(lane)
            return True
        if spec is None:
            return self._refuse(lane, job, f"The model {lane.model} takes no pictures.", "vision_unsupported")
        sizes = [spec.max_bytes, MAX_LUMA_BYTES] if job.wants_luma else [spec.max_bytes]
        offsets = self._take_ranges(job.frames_per_prompt * sizes, job)
        if offsets is None:
            if self._arena.taken:
                return False  # ranges come back as frames end
            many = f"{job.frames_per_prompt} pictures of the model {lane.model} do not fit into memory at once"
            advice = "lower the `batchSize` of `describe_images`, or give the prompt fewer pictures"
            return self._refuse(lane, job, f"{many}: {advice}.", "invalid_params")
        prompt = job.next_prompt()
        for offset in offsets[len(prompt.frames) * len(sizes) :]:
            self._arena.give_back(offset)
        lane.decoding.add(prompt)
        prompt.mark(FrameState.DECODING)
        ranges = iter(offsets)
        for frame in prompt.frames:
            seq = next(self._seqs)
            frame.offset = offset = next(ranges)
            frame.luma_offset = luma = next(ranges) if job.wants_luma else None
            self._pictures[seq] = (lane, prompt, frame)
            request = Prepare(seq=seq, path=frame.ref.image_path, offset=offset, spec=spec, luma_offset=luma)
            self._images.prepare(request, front=job.interactive)
        return True

    def _take_ranges(self, sizes_bytes: list[int], job: Job) -> list[int] | None:
        """Take ranges of the arena for `job`.

        Where none can come back because nothing is under way, jobs give up what they keep to compare with: `job` itself
        last, which needs it next, and of the others those that came last first, so that the same ones keep theirs.
        """
        while (offsets := self._arena.take_many(sizes_bytes)) is None:
            holders = [*(other for other in reversed(self.jobs) if other is not job), job]
            if self._under_way or not any(holder.relieve() for holder in holders):
                return None
        return offsets

    @property
    def _under_way(self) -> bool:
        return bool(self._pictures) or any(lane.active or lane.ahead or lane.alone for lane in self._lanes.values())

    def _refuse(self, lane: Lane, job: Job, message: str, code: str) -> bool:
        """End a job that `_pump` cannot begin; it goes on with the next, where `end` would pump from within."""
        job.end_with(error_line(job.id, message, code))
        self._drop(lane, job)
        return True

    def _picture_arrived(self, lane: Lane, prompt: Prompt) -> None:
        if not prompt.opening:
            lane.decoding.discard(prompt)
            if prompt.job.ended or not prompt.job.runnable(prompt):
                self._leave(lane, prompt)
            else:
                lane.checking.add(prompt)
                prompt.job.decoded(prompt, lambda needed: self._decided(lane, prompt, needed=needed))
        self._pump(lane)

    def _decided(self, lane: Lane, prompt: Prompt, *, needed: bool) -> None:
        """The job knows whether a prompt is for the engine."""
        if prompt not in lane.checking:
            return  # its job has ended meanwhile
        lane.checking.discard(prompt)
        for frame in prompt.frames:
            self._release_luma(frame)
        if needed and not prompt.job.ended:
            lane.ready.append(prompt)
        else:
            self._leave(lane, prompt, follows=True)
        self._pump(lane)

    def _lost(self, lane: Lane, prompt: Prompt, error: str) -> None:
        """Try a prompt that the engine has lost once more, alone, if it may be."""
        if prompt.job.ended:
            self._release(prompt)
            return
        prompt.crashes += 1
        if prompt.crashes < _MAX_CRASHES and prompt.job.retryable(prompt):
            prompt.mark(FrameState.READY)
            lane.alone.append(prompt)
        else:
            self._give_up(lane, prompt, "worker_crashed", error)

    def _give_up(self, lane: Lane, prompt: Prompt, code: str, error: str) -> None:
        prompt.job.fail_prompt(prompt, code, error)
        self._leave(lane, prompt)

    def _leave(self, lane: Lane, prompt: Prompt, *, follows: bool = False) -> None:
        """Count and free the done frames of `prompt`, and forget its job with its last frame.

        Those that follow another one need their picture no longer and are counted with that one's.
        """
        for frame in [*prompt.job.take_late(), *prompt.frames]:
            if frame.state is FrameState.DONE:
                self.frames_done += not frame.failed
                self.frames_failed += frame.failed
                self.frames_cached += frame.source == "store"
                self.frames_duplicate += frame.source == "duplicate"
        self._release(prompt, follows=follows)
        if prompt.job.ended:
            lane.turns.discard(prompt.job)

    def _release(self, prompt: Prompt, *, follows: bool = False) -> None:
        for frame in prompt.frames:
            if frame.state is FrameState.DECODING:
                continue  # a process may write there at any moment
            if not (follows or prompt.job.ended or frame.state is FrameState.DONE):
                continue
            self._release_luma(frame)
            if frame.offset is not None:
                self._arena.give_back(frame.offset)
                frame.offset = None
            if follows:
                frame.picture = None  # opened again, should it take the place of one that fails

    def _release_luma(self, frame: Frame) -> None:
        if frame.luma_offset is not None:
            self._arena.give_back(frame.luma_offset)
            frame.luma_offset = frame.luma = None

    def _clear(self, job: Job) -> None:
        for lane in self._lanes.values():
            self._drop(lane, job)
        self.pump()

    def _drop(self, lane: Lane, job: Job) -> None:
        lane.turns.discard(job)
        for queue in (lane.checking, lane.ready, lane.alone):
            for prompt in [prompt for prompt in queue if prompt.job is job]:
                queue.remove(prompt)
                self._release(prompt)
        self._withdraw(lane, job)
        for seq, prompt in lane.running.items():
            if prompt.job is job:
                lane.engine.send(Remove(seq=seq))

    def _withdraw(self, lane: Lane, job: Job) -> None:
        """Take the pictures of an ended job out of the queue; nothing waits for one that is being opened."""
        withdrawn = self._images.withdraw([seq for seq, (_, prompt, _) in self._pictures.items() if prompt.job is job])
        for seq in withdrawn:
            self._pictures.pop(seq)[2].state = FrameState.QUEUED
        for prompt in [prompt for prompt in lane.decoding if prompt.job is job]:
            lane.decoding.discard(prompt)
            self._release(prompt)
