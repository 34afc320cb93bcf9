"""What jobs and the scheduler share: prompts, their frames, and where the lines of an answer go."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.workers.image_messages import Likeness, Luma, Reference
from vlmd_bridge.workers.messages import Count, Counted, Delta, Finished, Picture, Start
from vlmd_protocol.messages import BatchLine, ErrorLine, FrameResult, GenerateLine, Id, ImageRef, Line, ResultLine

# Every line after which a request is over.
TerminalLine: TypeAlias = BatchLine | GenerateLine | ResultLine | ErrorLine


# Told whether a prompt is for the engine; where not, its frames are settled, or wait for another one's result.
Decide: TypeAlias = Callable[[bool], None]

# Where a frame's text comes from.
Source: TypeAlias = Literal["engine", "store", "duplicate"]


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
class Comparison:
    """A frame compared with another one, `like` once that is known."""

    reference: Frame
    like: Likeness | None = None


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a job.

    `offset` is its range of the arena, held from decoding until it is done, `luma_offset` another one, held until it is
    known whether the frame is for the engine. `digest` is that of the bytes that were decoded.
    """

    position: int
    ref: ImageRef
    state: FrameState = FrameState.QUEUED
    offset: int | None = None
    picture: Picture | None = None
    failed: bool = False
    digest: bytes = b""
    luma_offset: int | None = None
    luma: Luma | None = None
    comparison: Comparison | None = None
    source: Source = "engine"
    entry: StoreEntry | None = None


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

    @property
    def opening(self) -> bool:
        """Whether pictures of it are with the image processes."""
        return any(frame.state is FrameState.DECODING for frame in self.frames)

    def mark(self, state: FrameState) -> None:
        """Move its frames that are not done to `state`."""
        for frame in self.frames:
            if frame.state is not FrameState.DONE:
                frame.state = state


@dataclass(frozen=True, slots=True)
class Request:
    """What an answer is kept under: of which model, and what it was told."""

    model: ModelIdentity
    digest: bytes


@dataclass(slots=True, eq=False)
class StoreEntry:
    """What the result store would keep of a prompt: complete when each of its frames has a valid result."""

    request: Request
    results: dict[int, FrameResult | None]


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

    @property
    def wants_luma(self) -> bool:
        """Whether its pictures are to be compared with one another."""

    def reference_for(self, frame: Frame) -> Reference | None:
        """Return what the picture of `frame` is compared with as soon as it is there, as far as can be told now."""

    def relieve(self) -> bool:
        """Free a range of the arena that is only kept to compare with; False where there is none.

        Only while none of its pictures is opened or compared.
        """

    def decoded(self, prompt: Prompt, decide: Decide) -> None:
        """Call `decide` once it is known whether `prompt`, whose pictures are there, is for the engine."""

    def take_late(self) -> list[Frame]:
        """Return the frames that were settled by another one's answer, each once."""

    def runnable(self, prompt: Prompt) -> bool:
        """Whether `prompt`, whose pictures are all opened or given up, has anything to ask."""

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
