"""Closes a record's fields in time, so that its text form is whole within any budget of tokens.

A grammar alone cannot: bounds in characters cut a trained model short or let one that writes byte by byte run over.
Here each field has a share of the tokens that are left. A field that has used up its share is closed by forcing the
tokens of the separator behind it; until then nothing is forced, and an answer of usual length is never touched.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlmd_bridge.workers.messages import RecordConstraint

# What separates the fields, and the byte at which a field is known to have ended.
_SEPARATORS = (b" | activity: ", b" | apps: [", b"] | topics: [", b"]")
_ENDS = (b"|", b"|", b"]", b"]")

# Shares of the fields: description, activity, apps, topics. What a field leaves goes to those behind it.
_WEIGHTS = (6.0, 1.5, 1.0, 1.5)

# A field can overrun its share by the rest of a UTF-8 character (3 bytes), and forced text may split otherwise than
# when it is tokenized alone.
_SLACK_TOKENS = 5

# Tried after the separator itself: behind a blank, and in an empty field.
_CLOSERS = (b".%s", b"unknown%s", b" unknown%s")


class Matcher(Protocol):
    """The part of `llguidance.LLMatcher` used here."""

    def validate_tokens(self, tokens: list[int]) -> int:
        """Return how many of `tokens` the grammar takes from here."""
        ...


class Tokenizer(Protocol):
    """The part of `llguidance.LLTokenizer` used here."""

    def tokenize_bytes(self, utf8bytes: bytes) -> list[int]:
        """Return the usual tokens of a text."""
        ...

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """Return the bytes of `tokens`."""
        ...


class RecordBudget:
    """Follows one answer of `constraint.frame_count` records, token by token."""

    def __init__(self, tokenizer: Tokenizer, constraint: RecordConstraint, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._constraint = constraint
        self._max_tokens = max_tokens
        separators = [len(tokenizer.tokenize_bytes(separator)) + _SLACK_TOKENS for separator in _SEPARATORS]
        # Tokens to keep for the separators from field k's end to the end of the record.
        self._reserves = [sum(separators[k:]) for k in range(len(_SEPARATORS))]
        self._frame = 0
        self._field = 0
        self._used = 0
        self._literal_left = 0
        self._limit = max_tokens
        self._forced: list[int] = []
        self._begin_frame()

    def advance(self, token: int) -> None:
        """Take the token that was produced."""
        self._used += 1
        if self._forced and self._forced.pop(0) != token:
            self._forced.clear()
        for byte in self._tokenizer.decode_bytes([token]):
            self._advance_byte(byte)

    def forced(self, matcher: Matcher) -> int | None:
        """Return the token that must come next to close a field in time, or None while there is time."""
        if not self._forced and self._literal_left == 0 and self._used >= self._limit:
            self._forced = self._closing_tokens(matcher)
        return self._forced[0] if self._forced else None

    def narrow(self, words: NDArray[np.int32]) -> None:
        """Nothing: the grammar and forced tokens are enough."""

    def _advance_byte(self, byte: int) -> None:
        if self._literal_left:
            self._literal_left -= 1
            if self._literal_left == 0:
                self._begin_field()
        elif self._field < len(_ENDS) and byte == _ENDS[self._field][0]:
            separator = _SEPARATORS[self._field]
            self._literal_left = len(separator) - separator.index(byte) - 1
            self._field += 1
            if self._field == len(_ENDS):
                self._frame += 1
                if self._frame < self._constraint.frame_count:
                    self._begin_frame()

    def _begin_frame(self) -> None:
        self._field = 0
        self._literal_left = len(self._frame_prefix())
        # Each frame that is left gets an even share, so that the last ones are described too.
        left = self._constraint.frame_count - self._frame
        self._frame_end = self._used + (self._max_tokens - self._used) // left

    def _begin_field(self) -> None:
        pool = self._frame_end - self._used - self._reserves[self._field]
        self._limit = self._used + int(pool * _WEIGHTS[self._field] / sum(_WEIGHTS[self._field :]))

    def _frame_prefix(self) -> bytes:
        label = f"Frame {self._frame + 1}: " if self._constraint.labelled else ""
        return f"{chr(10) if self._frame else ''}{label}description: ".encode()

    def _closing_tokens(self, matcher: Matcher) -> list[int]:
        if self._field == len(_ENDS):
            return []
        # The blank behind the colon is left to the next field, whose first token may carry it.
        separator = _SEPARATORS[self._field].removesuffix(b" ")
        for text in (separator, separator.lstrip(b" "), *(closer % separator for closer in _CLOSERS)):
            tokens = self._tokenizer.tokenize_bytes(text)
            if matcher.validate_tokens(tokens) == len(tokens):
                return tokens
        return []  # inside a character: its last bytes come first
