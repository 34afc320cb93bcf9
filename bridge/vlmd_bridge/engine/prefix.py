"""Shares the prefill of the text with which prompts begin: the same instructions before every frame.

mlx-vlm's own prefix cache never hits here, since its key covers a prompt's image. What is computed here is what the
language model would compute: the keys and values of text tokens do not depend on an image behind them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

import mlx.core as mx

from vlmd_bridge.engine.language import Language, RowState

# Below this, finding and copying a prefix costs as much as the prefill that it saves.
_MIN_TOKENS = 32

# What a prompt must have behind its prefix: a token to prefill and one to sample behind.
_LEFT_TOKENS = 2

# One for each prompt in use; a job's labels may add one that is a little longer (``Frame (timestamp: 1``).
_KEPT = 4

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix(Generic[State]):
    """Tokens, and what a model holds after them."""

    token_ids: tuple[int, ...]
    state: State


class PrefixIndex(Generic[State]):
    """Keeps the states of prefixes that two prompts in a row had in common."""

    def __init__(self, image_token_ids: frozenset[int]) -> None:
        self._image_token_ids = image_token_ids
        self._last: Sequence[int] = ()
        self._prefixes: OrderedDict[tuple[int, ...], Prefix[State]] = OrderedDict()
        # Prompt tokens that were not computed again.
        self.saved_tokens = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def clear(self) -> None:
        """Give the memory back."""
        self._prefixes.clear()
        self._last = ()

    def find(self, token_ids: Sequence[int], compute: Callable[[int], State]) -> Prefix[State] | None:
        """Return the prefix to begin `token_ids` with, or None; `compute` makes the state of so many first tokens."""
        prefix = self._known(token_ids)
        if prefix is not None:
            self.saved_tokens += len(prefix.token_ids)
            self._last = token_ids
            return prefix
        last, self._last = self._last, token_ids
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(token_ids, last, strict=False)))
        # Image tokens are alike for every image: only text before the first one is the same in both prompts.
        image_at = next((i for i, token in enumerate(token_ids) if token in self._image_token_ids), len(token_ids))
        shared = min(shared, image_at, len(token_ids) - _LEFT_TOKENS)
        if shared < _MIN_TOKENS:
            return None
        prefix = Prefix(token_ids=tuple(token_ids[:shared]), state=compute(shared))
        self._prefixes[prefix.token_ids] = prefix
        if len(self._prefixes) > _KEPT:
            self._prefixes.popitem(last=False)
        return prefix

    def _known(self, token_ids: Sequence[int]) -> Prefix[State] | None:
        # A prefix may be all of a shorter prompt: the first turn of the conversation that it was found in.
        most = len(token_ids) - _LEFT_TOKENS
        known = [
            prefix
            for prefix in self._prefixes.values()
            if len(prefix.token_ids) <= most and tuple(token_ids[: len(prefix.token_ids)]) == prefix.token_ids
        ]
        if not known:
            return None
        longest = max(known, key=lambda prefix: len(prefix.token_ids))
        self._prefixes.move_to_end(longest.token_ids)
        return longest


class Prefixes(PrefixIndex[RowState]):
    """The prefixes of our own decode loop."""

    def begin(self, language: Language, token_ids: Sequence[int], inputs: Mapping[str, Any]) -> tuple[RowState, int]:
        """Return the state in which the prefill of a prompt begins, and the tokens that it holds already."""

        def compute(length: int) -> RowState:
            state = language.begin()
            language.prefill(state, token_ids[:length], inputs, 0)
            mx.eval(state.arrays())
            return state

        prefix = self.find(token_ids, compute)
        return (language.begin(), 0) if prefix is None else (prefix.state.copy(), len(prefix.token_ids))
