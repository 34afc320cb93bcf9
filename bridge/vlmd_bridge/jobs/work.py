"""What jobs and the scheduler share: prompts, their frames, and where the lines of an answer go."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vlmd_bridge.workers.messages import Count, Counted, Delta, Finished, Picture, Start
from vlmd_protocol.messages import BatchLine, ErrorLine, GenerateLine, Id, ImageRef, Line, ResultLine

# Every line after which a request is over.
TerminalLine: TypeAlias = BatchLine | GenerateLine | ResultLine | ErrorLine


class Sink(Protocol):
    """Where a job's lines go: one request of one connection."""

    @property
    def writable(self) -> bool:
        """False while the reader is behind: the job admits nothing more."""

    def send(self, line: Line) -> None:
        """Queue a line."""

    def end(self, line: TerminalLine) -> None:
        """Queue the terminal line."""


class FrameState(enum.Enum):
    """Where a frame is. Each boundary looks whether its job has ended."""

    QUEUED = "queued"
    DECODING = "decoding"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a job. `offset` is its range of the arena, held from decoding until it is done."""

    position: int
    ref: ImageRef
    state: FrameState = FrameState.QUEUED
    offset: int | None = None
    picture: Picture | None = None
    failed: bool = False


@dataclass(slots=True, eq=False)
class Prompt:
    """One sequence for the engine: a frame, or in interleaved mode some that share it."""

    job: Job
    frames: list[Frame]
    max_tokens: int
    retry: bool = False
    crashes: int = 0

    @property
    def described(self) -> list[Frame]:
        """The frames whose picture could be read, in order."""
        return [frame for frame in self.frames if frame.picture is not None]

    def mark(self, state: FrameState) -> None:
        """Move its frames that are not done to `state`."""
        for frame in self.frames:
            if frame.state is not FrameState.DONE:
                frame.state = state


class Job(Protocol):
    """A request under way, as the scheduler sees it. It says what comes next and what each answer means."""

    @property
    def id(self) -> Id:
        """The request's id."""

    @property
    def client(self) -> Hashable:
        """Whose turn it takes; the connection."""

    @property
    def interactive(self) -> bool:
        """Whether it goes before batch work."""

    @property
    def ended(self) -> bool:
        """Whether its terminal line was queued."""

    @property
    def admissible(self) -> bool:
        """Whether another prompt may begin."""

    @property
    def waiting(self) -> int:
        """Frames that no prompt has taken yet."""

    @property
    def frames_per_prompt(self) -> int:
        """Pictures of its next prompt, at most."""

    def next_prompt(self) -> Prompt:
        """Take the next prompt. Only while `admissible`."""

    def runnable(self, prompt: Prompt) -> bool:
        """Whether `prompt`, whose pictures are all opened or given up, is for the engine."""

    def retryable(self, prompt: Prompt) -> bool:
        """Whether `prompt` may run again after the engine was lost."""

    def start_message(self, prompt: Prompt, seq: int) -> Start | Count:
        """Return what the engine is to run for `prompt`."""

    def delta(self, prompt: Prompt, piece: Delta) -> None:
        """Take a piece of the answer."""

    def finished(self, prompt: Prompt, answer: Finished | Counted) -> list[Prompt]:
        """Take the engine's answer; return prompts that retry a part of it."""

    def fail_prompt(self, prompt: Prompt, code: str, error: str) -> None:
        """The engine failed on `prompt`."""

    def fail_frame(self, frame: Frame, code: str, error: str) -> None:
        """A picture cannot be used."""

    def end_with(self, line: ErrorLine) -> None:
        """End the whole request with an error; nothing is sent after it."""

    def cancel(self) -> None:
        """End it because somebody asked to."""
