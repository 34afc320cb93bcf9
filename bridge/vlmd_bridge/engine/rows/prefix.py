"""Shares the prefill of the text with which prompts begin: the same instructions before every frame.

mlx-vlm's own prefix cache never hits here, since its key covers a prompt's image. What is computed here is what the
language model would compute: the keys and values of text tokens do not depend on an image behind them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

import mlx.core as mx

from vlmd_bridge.engine.rows.language import Language, RowState

# Below this, finding and copying a prefix costs as much as the prefill that it saves.
_MIN_TOKENS = 32

# What a prompt must have behind its prefix: a token to prefill and one to sample behind.
_LEFT_TOKENS = 2

# Prefixes, and prompts to find them in: so many jobs may take turns.
_KEPT = 4

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix(Generic[State]):
    """Tokens, and what a model holds after them."""

    token_ids: tuple[int, ...]
    state: State


class PrefixIndex(ABC, Generic[State]):
    """Keeps the states of prefixes that prompts soon after each other had in common.

    Attributes:
        limit_bytes: of all states together; the one that was used last may be larger alone.
        saved_tokens: prompt tokens that were not computed again.
    """

    def __init__(self, image_token_ids: frozenset[int]) -> None:
        self.limit_bytes = math.inf
        self.saved_tokens = 0
        self._image_token_ids = image_token_ids
        # The last prompts, as far as others may share them.
        self._heads: deque[list[int]] = deque(maxlen=_KEPT)
        self._prefixes: OrderedDict[tuple[int, ...], Prefix[State]] = OrderedDict()

    @abstractmethod
    def state_bytes(self, state: State) -> int:
        """Return the memory that `state` holds."""

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def held_bytes(self) -> int:
        """The memory that all states hold."""
        return sum(self.state_bytes(prefix.state) for prefix in self._prefixes.values())

    def clear(self) -> None:
        """Give the memory back."""
        self._prefixes.clear()
        self._heads.clear()

    def find(
        self, token_ids: Sequence[int], compute: Callable[[int, Prefix[State] | None], State]
    ) -> Prefix[State] | None:
        """Return the prefix to begin `token_ids` with, or None.

        `compute` makes the state of so many first tokens, going on from a prefix of them where one is known.
        """
        # Image tokens are alike for every image: only text before the first one is the same in two prompts.
        head = list(takewhile(lambda token: token not in self._image_token_ids, token_ids))
        most = min(len(head), len(token_ids) - _LEFT_TOKENS)
        known = self._known(head, most)
        known_tokens = 0 if known is None else len(known.token_ids)
        self.saved_tokens += known_tokens
        shared = min(most, max((_common(head, other) for other in self._heads), default=0))
        self._heads.append(head)
        if shared < known_tokens + _MIN_TOKENS:
            return known
        prefix = Prefix(token_ids=tuple(head[:shared]), state=compute(shared, known))
        self._prefixes[prefix.token_ids] = prefix
        while len(self._prefixes) > _KEPT or (len(self._prefixes) > 1 and self.held_bytes > self.limit_bytes):
            self._prefixes.popitem(last=False)
        return prefix

    def _known(self, head: list[int], most: int) -> Prefix[State] | None:
        # A prefix may be all of a shorter prompt: the first turn of the conversation that it was found in.
        known = [
            prefix
            for prefix in self._prefixes.values()
            if len(prefix.token_ids) <= most and tuple(head[: len(prefix.token_ids)]) == prefix.token_ids
        ]
        if not known:
            return None
        longest = max(known, key=lambda prefix: len(prefix.token_ids))
        self._prefixes.move_to_end(longest.token_ids)
        return longest


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens are alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Prefixes(PrefixIndex[RowState]):
    """The prefixes of our own decode loop."""

    def state_bytes(self, state: RowState) -> int:
        """Sum up its arrays."""
        return sum(array.nbytes for array in state.arrays())

    def begin(self, language: Language, token_ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[RowState, int]:
        """Return the state in which the prefill of a prompt begins, and the tokens that it holds already."""

        def compute(length: int, known: Prefix[RowState] | None) -> RowState:
            state, start = _begun(language, known)
            language.prefill(state, token_ids[:length], inputs, start)
            mx.eval(state.arrays())
            return state

        return _begun(language, self.find(token_ids, compute))


def _begun(language: Language, prefix: Prefix[RowState] | None) -> tuple[RowState, int]:
    return (language.begin(), 0) if prefix is None else (prefix.state.copy(), len(prefix.token_ids))
