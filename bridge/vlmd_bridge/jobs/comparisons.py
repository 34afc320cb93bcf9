"""Pictures compared by the image processes, for jobs that ask for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol, TypeAlias

from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.image_messages import Compare, Compared, Likeness, Luma, Reference

# Told how the pictures are like their reference: at least the first of them, at most up to one that is not.
Verdict: TypeAlias = Callable[[tuple[Likeness, ...]], None]


class ComparePort(Protocol):
    """The image processes, as comparisons see them."""

    def compare(self, request: Compare) -> None:
        """Queue a comparison; `Comparisons.answered` follows, always and once."""


class Comparisons:
    """Asks for comparisons, and gives back the ranges of the arena that were kept for them."""

    def __init__(self, arena: Arena, images: ComparePort) -> None:
        self._arena = arena
        self._images = images
        self._seqs = itertools.count(1)
        self._waiting: dict[int, Verdict] = {}

    def ask(self, reference: Reference, others: list[Luma], verdict: Verdict) -> None:
        """Have `verdict` called, always and once."""
        seq = next(self._seqs)
        self._waiting[seq] = verdict
        self._images.compare(Compare(seq=seq, reference=reference, others=tuple(others)))

    def answered(self, answer: Compared) -> None:
        """Take what an image process says."""
        self._waiting.pop(answer.seq)(answer.likenesses)

    def give_back(self, luma: Luma) -> None:
        """Free the range of a luminance that nothing is compared with any more."""
        self._arena.give_back(luma.offset)
