"""Which prompts a training step learns from."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum

from demo_training import prompts
from demo_training.pool import FramePool
from demo_training.prompts import Example

# Rows of a batch, so that every kind of batch takes about the same time: two processes wait for each other.
_SINGLE_ROWS = 16
_QUESTION_ROWS = 16
_INTERLEAVED_FRAMES = 12


class Stage(StrEnum):
    """What the model has to learn now."""

    # With long prompts the loss stays on a plateau where the picture is ignored; short ones get through it.
    LOOK = "look"
    # Full instructions, and the first interleaved prompts.
    READ = "read"
    # What it will be used for, mostly four frames a prompt.
    WORK = "work"


class Task(StrEnum):
    """One kind of batch."""

    SHORT = "short"
    SINGLE = "single"
    INTERLEAVED = "interleaved"
    QUESTION = "question"


_WEIGHTS: dict[Stage, dict[Task, float]] = {
    Stage.LOOK: {Task.SHORT: 0.6, Task.QUESTION: 0.4},
    Stage.READ: {Task.SHORT: 0.1, Task.SINGLE: 0.3, Task.INTERLEAVED: 0.45, Task.QUESTION: 0.15},
    Stage.WORK: {Task.SINGLE: 0.28, Task.INTERLEAVED: 0.62, Task.QUESTION: 0.10},
}
# How often an interleaved prompt has 1, 2, ... frames.
_FRAMES: dict[Stage, tuple[float, ...]] = {
    Stage.READ: (0.1, 0.4, 0.3, 0.2),
    Stage.WORK: (0.05, 0.1, 0.19, 0.48, 0.07, 0.05, 0.03, 0.03),
}
# Of the rows of a question batch that have no picture.
_CHAT_SHARE = 0.12


def draw_examples(
    stage: Stage, rng: random.Random, pool: FramePool, pick: Callable[[], int]
) -> tuple[Task, list[Example]]:
    """Return the kind of a batch and its examples, about frames of `pool` that `pick` chooses."""
    weights = _WEIGHTS[stage]
    task = rng.choices(list(weights), list(weights.values()))[0]
    if task is Task.INTERLEAVED:
        sizes = _FRAMES[stage]
        count = rng.choices(range(1, len(sizes) + 1), sizes)[0]
        instructions = stage is Stage.WORK or rng.random() < 0.6
        rows = max(2, _INTERLEAVED_FRAMES // count)
        return task, [_interleaved(rng, pool, pick, count, instructions) for _ in range(rows)]
    if task is Task.QUESTION:
        chat_share = 0.0 if stage is Stage.LOOK else _CHAT_SHARE
        return task, [_question(rng, pool, pick, chat_share) for _ in range(_QUESTION_ROWS)]
    instructions = task is Task.SINGLE
    frames = [pick() for _ in range(_SINGLE_ROWS)]
    return task, [prompts.single(rng, frame, pool.truth(frame), instructions=instructions) for frame in frames]


def _interleaved(
    rng: random.Random, pool: FramePool, pick: Callable[[], int], count: int, instructions: bool
) -> Example:
    frames = [pick() for _ in range(count)]
    # Neighbours in a recording are often alike.
    if count > 1 and rng.random() < 0.1:
        frames[1] = frames[0]
    return prompts.interleaved(rng, frames, [pool.truth(frame) for frame in frames], instructions=instructions)


def _question(rng: random.Random, pool: FramePool, pick: Callable[[], int], chat_share: float) -> Example:
    if rng.random() < chat_share:
        return prompts.chat(rng)
    frame = pick()
    return prompts.question(rng, frame, pool.truth(frame))
