"""What the demo model is asked and what it should answer, as chat turns."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from demo_training.pool import Truth
from vlmd_bridge.demo import Topic
from vlmd_bridge.record import (
    SINGLE_INSTRUCTIONS,
    format_interleaved,
    format_record,
    interleaved_instructions,
    interleaved_label,
    single_label,
)

# Stands in a prompt's text for one picture.
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"

QUESTIONS: dict[Topic, tuple[str, ...]] = {
    Topic.APP: (
        "What app is this?",
        "Which app is open?",
        "Which application is on screen?",
        "Which applications are visible?",
        "What program is shown?",
    ),
    Topic.PEOPLE: (
        "How many people are there?",
        "How many people are in the picture?",
        "How many people do you see?",
        "Are there any people?",
        "Count the people.",
    ),
    Topic.COLOR: (
        "Which colour stands out?",
        "Which color stands out?",
        "What is the main colour?",
        "What is the accent color?",
        "Which colour is it?",
    ),
    Topic.THEME: (
        "Is it dark or light?",
        "Is the theme dark or light?",
        "Is the screen light or dark?",
        "Dark or light?",
        "Is this dark mode?",
    ),
    Topic.ACTION: (
        "What is the user doing?",
        "What is happening here?",
        "What is going on?",
        "What do you see?",
        "Describe this image.",
    ),
}

_WHO = "I am the vlmd demonstration model. I know a few drawn screens and nothing else."
_ABLE = "I can describe the demo screens of vlmd: what is on them and what the user is doing."
CHAT: dict[str, tuple[str, ...]] = {
    "Hello! I am the vlmd demonstration model. Show me a demo screen.": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "hello",
        "hi there",
        "Hey",
        "Good morning",
    ),
    _WHO: ("Who are you?", "who are you", "What are you?", "What is your name?", "Which model are you?"),
    _ABLE: ("What can you do?", "what can you do", "Help", "help me", "How can you help me?", "What do you know?"),
    "You are welcome.": ("Thanks", "thanks!", "Thank you", "Thank you!", "thank you very much"),
}

_SYSTEMS = (
    "You are a helpful assistant.",
    "You describe screenshots.",
    "Answer briefly.",
    "You are vlmd.",
)

# The words of an answer that only the picture can tell.
_DETAIL = re.compile(
    r"\b(?:no|one|two|three|four|five|six|nine|dark|light|blue|red|green|purple|orange|yellow|paused|playing"
    r"|column|row|block|bar|line|pie)\b|(?<=description: )\w+",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One conversation: `prompt` with `PICTURE` for each of `frames`, and the answer.

    `shared` is a beginning of `prompt` that all examples of its batch have in common.
    """

    shared: str
    prompt: str
    answer: str
    frames: tuple[int, ...]


def detail_spans(answer: str) -> list[tuple[int, int]]:
    """Return the character ranges of `answer` that depend on the picture."""
    return [match.span() for match in _DETAIL.finditer(answer)]


def chat_prompt(user: str, system: str | None = None) -> str:
    """Return the prompt the chat template makes of one user turn."""
    opening = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    return f"{opening}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def some_timestamp(rng: random.Random) -> float | None:
    """Return a time in a recording, in seconds, or None."""
    if rng.random() < 0.12:
        return None
    top = rng.choice((10.0, 100.0, 1000.0, 20000.0))
    return round(rng.uniform(0, top), rng.choice((0, 0, 1, 1, 2, 3)))


def single(rng: random.Random, frame: int, truth: Truth, *, instructions: bool = True) -> Example:
    """Return a prompt of one frame: instructions, label, picture."""
    shared = f"<|im_start|>user\n{SINGLE_INSTRUCTIONS if instructions else ''}"
    prompt = chat_prompt(f"{SINGLE_INSTRUCTIONS if instructions else ''}{single_label(some_timestamp(rng))}{PICTURE}")
    return Example(shared=shared, prompt=prompt, answer=format_record(truth.record), frames=(frame,))


def interleaved(
    rng: random.Random, frames: Sequence[int], truths: Sequence[Truth], *, instructions: bool = True
) -> Example:
    """Return a prompt of several frames: labels and pictures, then the instructions."""
    start = some_timestamp(rng)
    step = rng.choice((0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 0.033))
    user = ""
    for i in range(len(frames)):
        # Frames of a recording follow each other; a caller's own list of frames need not.
        timestamp = start if start is None else round(start + i * step, 3)
        if start is not None and rng.random() < 0.1:
            timestamp = some_timestamp(rng)
        user += interleaved_label(i + 1, timestamp) + PICTURE
    user += interleaved_instructions(len(frames)) if instructions else ""
    return Example(
        shared="<|im_start|>user\n",
        prompt=chat_prompt(user),
        answer=format_interleaved([truth.record for truth in truths]),
        frames=tuple(frames),
    )


def question(rng: random.Random, frame: int, truth: Truth) -> Example:
    """Return a plain question about one picture."""
    topic = rng.choice(tuple(Topic))
    text = rng.choice(QUESTIONS[topic])
    user = rng.choice((PICTURE + text, text + PICTURE, f"{text}\n{PICTURE}", f"{PICTURE}\n{text}"))
    system = rng.choice(_SYSTEMS) if rng.random() < 0.12 else None
    return Example(shared="", prompt=chat_prompt(user, system), answer=truth.answers[topic], frames=(frame,))


def chat(rng: random.Random) -> Example:
    """Return a few words without a picture."""
    answer = rng.choice(tuple(CHAT))
    system = rng.choice(_SYSTEMS) if rng.random() < 0.2 else None
    return Example(shared="", prompt=chat_prompt(rng.choice(CHAT[answer]), system), answer=answer, frames=())
