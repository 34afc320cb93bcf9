"""Closes an answer of JSON in time, so that it is whole within any budget of tokens that a smallest one fits in.

Bounds on characters cannot: a character may take several tokens. While there are more tokens than the shortest way to
the end needs, with a margin for what one more choice can add, the model is free. Behind that, nothing optional is
begun any more but strings may still grow; at last the shortest way itself is forced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmd_bridge.engine.grammar.json_sizes import SchemaSizes
from vlmd_bridge.engine.grammar.vocabulary import Vocabulary

# The rest of a character (3 tokens), an escape, and a text that is tokenized otherwise behind what was written.
_SLACK_TOKENS = 8

# Outside a string: what ends something, then what is short. A digit comes before a string, null before both.
_OUTSIDE = b'}],:ntf0123456789"-[{'

# Inside one, when it may not end yet: what most patterns take, and what is short to escape.
_INSIDE = b"a0 A-.:/@_TZ+1"
_ESCAPES = b"n/\\tr0"
_FEW = 40


class JsonText:
    """Follows JSON byte by byte: inside a string or not, and how many brackets are open."""

    def __init__(self) -> None:
        self.in_string = False
        self.escaped = False
        self.depth = 0
        # Whether anything but the inside of a string was read since this was set to False.
        self.structural = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for byte in data:
            if self.in_string:
                if self.escaped:
                    self.escaped = False
                elif byte == 0x5C:
                    self.escaped = True
                elif byte == 0x22:
                    self.in_string = False
                    self.structural = True
                continue
            self.structural = True
            self.in_string = byte == 0x22
            self.depth += (byte in b"{[") - (byte in b"}]")

    def copy(self) -> JsonText:
        """Return another that goes on from here."""
        twin = JsonText()
        twin.__dict__.update(self.__dict__)
        return twin


class JsonBudget:
    """Follows one answer under a schema, token by token."""

    def __init__(self, vocabulary: Vocabulary, sizes: SchemaSizes, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = vocabulary.tokenizer
        self._max_tokens = max_tokens
        self._growth = sizes.growth
        # With more tokens left than this, nothing can go wrong, and nothing is looked at.
        self._watched = max_tokens if sizes.deepest is None else sizes.deepest + sizes.growth + 2 * _SLACK_TOKENS
        self._text = JsonText()
        self._used = 0
        self._way: list[int] | None = None
        self._words = np.zeros(-(-int(self._tokenizer.vocab_size) // 32), dtype=np.int32)

    def advance(self, token: int) -> None:
        """Take the token that was produced."""
        self._used += 1
        before = self._text.structural
        self._text.feed(self._tokenizer.decode_bytes([token]))
        if self._way and self._way[0] == token:  # the way goes on from here
            self._way = self._way[1:]
            self._text.structural = before

    def forced(self, matcher: Any) -> int | None:
        """Return the token that must come next to close in time, or None while there is time."""
        left = self._max_tokens - self._used
        if left > self._watched:
            return None
        way = self._shortest(matcher)
        if not way:
            return None
        margin = _SLACK_TOKENS if self._text.in_string else _SLACK_TOKENS + self._growth
        return way[0] if left <= len(way) + margin else None

    def narrow(self, words: NDArray[np.int32]) -> None:
        """Take out of `words` the tokens that would begin something optional, when there is no more time for that."""
        left = self._max_tokens - self._used
        if not self._text.in_string or not self._way or left > len(self._way) + _SLACK_TOKENS + self._growth:
            return
        kept = words & ~self._vocabulary.quoting
        if kept.any():
            words[:] = kept

    def _shortest(self, matcher: Any) -> list[int] | None:
        """Return the tokens of a short way to the end, or None when none was found."""
        way = self._way
        if way and not self._text.structural and matcher.validate_tokens(way) == len(way):
            return way
        self._way = self._search(matcher.deep_copy(), self._text.copy(), self._max_tokens - self._used)
        self._text.structural = False
        return self._way

    def _search(self, matcher: Any, text: JsonText, limit: int) -> list[int] | None:
        way: list[int] = []
        recent: dict[int, int] = {}
        while not matcher.is_stopped():
            if len(way) > limit:
                return None
            tokens = matcher.compute_ff_tokens()
            if not tokens:
                if matcher.is_accepting():  # a number at the top ends by EOS
                    return [*way, int(self._tokenizer.eos_token)]
                token = self._choose(matcher, text, recent)
                if token is None:
                    return None
                tokens = [token]
            for token in tokens:
                if not matcher.consume_token(token):
                    return None
                text.feed(self._tokenizer.decode_bytes([token]))
            way += tokens
        return None if matcher.is_error() else way

    def _choose(self, matcher: Any, text: JsonText, recent: dict[int, int]) -> int | None:
        """Return the token with which the shortest way probably begins."""
        matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        words = self._words.view(np.uint32)

        def allowed(byte: int) -> int | None:
            token = self._vocabulary.of_byte.get(byte)
            return token if token is not None and words[token // 32] >> (token % 32) & 1 else None

        if not text.in_string:
            order = _OUTSIDE
        elif text.escaped:
            order = _ESCAPES
        else:
            if (token := allowed(0x22)) is not None:
                return token
            bytes_ = (*_INSIDE, *(byte for byte in self._vocabulary.of_byte if byte not in _INSIDE))
            candidates = [token for byte in bytes_ if byte != 0x5C and (token := allowed(byte)) is not None]
            # A pattern leaves few, of which one may be the last; where nearly all are allowed, a length is asked for.
            for token in candidates if len(candidates) <= _FEW else ():
                ahead = matcher.deep_copy()
                if ahead.consume_token(token) and ahead.validate_tokens([self._vocabulary.of_byte[0x22]]):
                    return token
            # In turns, so that a pattern which asks for something else after a while gets it.
            if candidates:
                token = min(candidates, key=lambda each: recent.get(each, 0))
                recent[token] = recent.get(token, 0) + 1
                return token
            order = b""
        for byte in order:
            if (token := allowed(byte)) is not None:
                return token
        # The middle of a character, or of a word: whatever comes, the shortest.
        found = np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little"))[:64]
        texts = {int(token): self._tokenizer.decode_bytes([int(token)]) for token in found}
        return min(texts, key=lambda each: len(texts[each]), default=None)
