"""How the rows of a batch share memory: places side by side, every one with room for the longest row.

A rectangle is what attention computes with, so the room of the longest row is held for each. What is not needed for
that is bounded: no more tokens are held than `SMALL_TOKENS`, or twice the rows times the longest one (to whole steps).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Tokens by which the room of all places grows: rows of one job are of similar length, and growing copies everything.
STEP_TOKENS = 256

# Up to so many tokens in all, eight frames and their answers, places come in powers of two and are not taken back:
# rows join and leave one by one, and every change of the rectangle copies it.
SMALL_TOKENS = 4096

# Beyond, it is cut when it is that many times as large as the rows in use need.
_SLACK = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rectangle:
    """A new size for the arrays of every layer; the rows at the places `kept` go to the first ones, in order."""

    kept: tuple[int, ...]
    count: int
    room: int


class Places:
    """Where the row of each slot is. What changes the rectangle returns the new one, or None while it stays."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._count = 0
        self._room = 0

    def __getitem__(self, slot: int) -> int:
        return self._places[slot]

    @property
    def held_tokens(self) -> int:
        """Tokens that there is memory for."""
        return self._count * self._room

    def join(self, slot: int, length: int) -> Rectangle | None:
        """Find a place for a row of `length` tokens, and for the next one of them."""
        place = min(set(range(len(self._places) + 1)) - set(self._places.values()))
        self._lengths[slot] = length + 1
        if place < self._count and length < self._room:
            self._places[slot] = place
            return None
        return self._anew()

    def grow(self, lengths: Iterable[tuple[int, int]]) -> Rectangle | None:
        """Take the new length of rows, (slot, tokens) each."""
        self._lengths.update(lengths)
        return self._anew() if max(self._lengths.values()) > self._room else None

    def leave(self, slot: int) -> Rectangle | None:
        """Let the row of `slot` go; others stay, or `clear` is called."""
        del self._places[slot], self._lengths[slot]
        needed = len(self._lengths) * _stepped(max(self._lengths.values()))
        return self._anew() if self.held_tokens > max(SMALL_TOKENS, _SLACK * needed) else None

    def clear(self) -> None:
        """Forget all rows."""
        self._places.clear()
        self._lengths.clear()
        self._count = self._room = 0

    def _anew(self) -> Rectangle:
        in_order = sorted(self._places, key=self._places.__getitem__)
        kept = tuple(self._places[slot] for slot in in_order)
        new = [slot for slot in self._lengths if slot not in self._places]
        self._places = {slot: place for place, slot in enumerate([*in_order, *new])}
        rows = len(self._places)
        self._room = _stepped(max(self._lengths.values()))
        self._count = 1 << (rows - 1).bit_length()
        if self.held_tokens > SMALL_TOKENS:
            self._count = rows
        return Rectangle(kept=kept, count=self._count, room=self._room)


def _stepped(length: int) -> int:
    return -(-length // STEP_TOKENS) * STEP_TOKENS
