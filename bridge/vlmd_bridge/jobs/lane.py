"""The way of one model's frames: which prompts are where, and how many the engine takes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from vlmd_bridge.jobs.turns import MAX_INTERACTIVE_STREAK, Turns
from vlmd_bridge.jobs.work import Prompt
from vlmd_bridge.workers.messages import Count, EngineInfo, Remove, Start

# The worker's own short queue: hides the round trip between a row's end and the next row's start.
_EXTRA_CREDITS = 2

# Beyond those, for prompts that somebody waits for: the worker admits them first.
_FRONT_CREDITS = 2


class EnginePort(Protocol):
    """One engine worker, as the scheduler sees it."""

    def send(self, message: Start | Count | Remove) -> None:
        """Queue a message; if the worker is gone it is dropped, `Scheduler.engine_lost` tells of it."""


@dataclass(slots=True, eq=False)
class Lane:
    """The way of one model's frames.

    Attributes:
        info: of the engine, None while it is not ready.
        waits_for_room: whether it has stopped for want of ranges of the arena, which all lanes share.
    """

    model: str
    engine: EnginePort
    info: EngineInfo | None = None
    turns: Turns = field(default_factory=Turns)
    decoding: set[Prompt] = field(default_factory=set)
    checking: set[Prompt] = field(default_factory=set)
    ready: deque[Prompt] = field(default_factory=deque)
    alone: deque[Prompt] = field(default_factory=deque)
    running: dict[int, Prompt] = field(default_factory=dict)
    interactive_streak: int = 0
    waits_for_room: bool = False

    @property
    def credits(self) -> int:
        """Sequences the worker takes now."""
        if self.info is None:
            return 0
        return self.info.width + _EXTRA_CREDITS - len(self.running)

    @property
    def runs_alone(self) -> bool:
        """Whether the engine is on a prompt that was lost in a crash: nothing joins it."""
        return any(prompt.crashes for prompt in self.running.values())

    @property
    def ahead(self) -> int:
        """Prompts on their way to the engine."""
        return len(self.decoding) + len(self.checking) + len(self.ready)

    @property
    def active(self) -> int:
        """Prompts that the engine has."""
        return len(self.running)

    def takes(self, prompt: Prompt) -> bool:
        """Whether the engine takes `prompt` now, as far as credits go."""
        return self.credits + _FRONT_CREDITS * prompt.job.interactive > 0

    def next_ready(self) -> Prompt:
        """Return the prompt to start next: interactive ones first, unless batch work has waited for many of them."""
        due = self.interactive_streak >= MAX_INTERACTIVE_STREAK
        return next((prompt for prompt in self.ready if prompt.job.interactive != due), self.ready[0])
