"""Whose frame is next: interactive before batch, clients in turn, and a bounded wait for batch work."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from vlmd_bridge.jobs.work import Job

# After so many interactive prompts in a row a batch prompt gets its turn, if one waits.
MAX_INTERACTIVE_STREAK = 8


class Turns:
    """The jobs of one model that still have frames to admit."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._last_turn: dict[Hashable, int] = {}
        self._ticks = itertools.count(1)
        self._interactive_streak = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> itertools.chain[Job]:
        return itertools.chain(self._jobs)

    def add(self, job: Job) -> None:
        """Let `job` take its turns."""
        self._jobs.append(job)

    def discard(self, job: Job) -> None:
        """Forget `job`; its client's turn is forgotten with its last job."""
        if job in self._jobs:
            self._jobs.remove(job)
        if all(other.client != job.client for other in self._jobs):
            self._last_turn.pop(job.client, None)

    def pick(self, *, interactive_only: bool = False) -> Job | None:
        """Return the job whose next prompt is to be admitted, or None when none may admit one now.

        With `interactive_only` batch work takes no turn but the one that it has waited for long enough.
        """
        ready = [job for job in self._jobs if job.admissible]
        interactive = [job for job in ready if job.interactive]
        batch = [job for job in ready if not job.interactive]
        if batch and self._interactive_streak >= MAX_INTERACTIVE_STREAK:
            candidates = batch
        else:
            candidates = interactive or ([] if interactive_only else batch)
        if not candidates:
            return None
        job = min(candidates, key=lambda job: self._last_turn.get(job.client, 0))
        self._interactive_streak = self._interactive_streak + 1 if job.interactive else 0
        self._last_turn[job.client] = next(self._ticks)
        return job
