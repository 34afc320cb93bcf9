"""Requests whose answers are known: asked alone first, then compared with under load. On the demo model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import vlmd
from vlmd_bridge.demo import iter_recording

# Twelve groups of four for the interleaved mode, and as many questions.
FRAMES = 48
_GROUP = 4

QUESTIONS = ("What app is this?", "How many people are there?", "What is the user doing?")

# How the words of a frame begin that was not described; its code follows.
ERROR = "error "

# A frame as it is compared: everything that the model says of it.
Words: TypeAlias = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def write_recording(folder: Path, count: int = FRAMES, *, seed: int = 11) -> list[str]:
    """Write the frames of a synthetic recording and return their paths."""
    paths = []
    for number, frame in enumerate(iter_recording(seed, count)):
        path = folder / f"{number:05d}.png"
        # Level 1: written fast; size does not count.
        frame.image.save(path, compress_level=1)
        paths.append(str(path))
    return paths


def words(frame: vlmd.Frame[None]) -> Words:
    """Return what the model said of `frame`; an error is never equal to words."""
    if frame.error is not None or frame.code is not None:
        return (f"{ERROR}{frame.code}", f"{frame.error}", (), ())
    return (frame.description, frame.activity, tuple(frame.apps), tuple(frame.topics))


@dataclass(kw_only=True)
class KnownAnswers:
    """The answers that each request gets when nothing else runs."""

    paths: list[str]
    frames: dict[str, Words] = field(default_factory=dict)
    groups: dict[int, list[Words]] = field(default_factory=dict)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    @classmethod
    def ask(cls, client: vlmd.Client, paths: list[str]) -> KnownAnswers:
        """Ask for everything, one request at a time."""
        known = cls(paths=paths)
        for path in paths:
            (frame,) = client.describe_all([path])
            known.frames[path] = words(frame)
        for start in range(0, len(paths), _GROUP):
            group = client.describe_all(paths[start : start + _GROUP], mode="interleaved", batch_size=_GROUP)
            known.groups[start] = [words(frame) for frame in group]
        for question in QUESTIONS:
            known.tokens[question] = client.count_tokens(question).prompt_tokens
            for path in paths[: 3 * _GROUP]:
                known.texts[question, path] = client.generate(question, images=[path], max_tokens=24).text()
        return known

    def batch(self, client: vlmd.Client, rng: random.Random) -> tuple[str, object, object]:
        """Ask for a job of many frames; return its name, what came and what should have."""
        if rng.random() < 0.25:
            starts = rng.sample(sorted(self.groups), rng.randint(1, 3))
            paths = [path for start in starts for path in self.paths[start : start + _GROUP]]
            frames = client.describe_all(paths, mode="interleaved", batch_size=_GROUP)
            expected = [answer for start in starts for answer in self.groups[start]]
            return "interleaved", _in_order(frames, paths), expected
        paths = rng.choices(self.paths, k=rng.randint(4, 24))
        frames = client.describe_all(paths, batch_size=rng.choice((1, 4, 7)))
        return "describe", _in_order(frames, paths), [self.frames[path] for path in paths]

    def interactive(self, client: vlmd.Client, rng: random.Random) -> tuple[str, object, object]:
        """Ask something small; return its name, what came and what should have."""
        question, path = rng.choice(sorted(self.texts))
        match rng.randrange(4):
            case 0:
                (frame,) = client.describe_all([path], priority="interactive")
                return "frame", words(frame), self.frames[path]
            case 1:
                return "count", client.count_tokens(question).prompt_tokens, self.tokens[question]
            case 2:
                pieces = list(client.generate(question, images=[path], max_tokens=24))
                return "stream", "".join(pieces), self.texts[question, path]
            case _:
                text = client.generate(question, images=[path], max_tokens=24).text()
                return "generate", text, self.texts[question, path]


def _in_order(frames: list[vlmd.Frame[None]], paths: list[str]) -> list[Words]:
    """Return the words of `frames`; a frame at another's place is told by its path."""
    said = [words(frame) for frame in frames]
    for number, (frame, path) in enumerate(zip(frames, paths, strict=False)):
        if frame.index != number or frame.image_path != path:
            said[number] = (f"index {frame.index}, {frame.image_path} at {number}", "", (), ())
    return said
