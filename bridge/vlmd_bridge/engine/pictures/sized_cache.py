"""Keeps what was made last, bounded by its bytes and not by its number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SizedCache(Generic[Key, Value]):
    """Values by key, `limit_bytes` of them; the one that was asked for last may be larger alone."""

    def __init__(self, make: Callable[[Key], Value], nbytes: Callable[[Value], int], limit_bytes: int) -> None:
        self._make = make
        self._nbytes = nbytes
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __call__(self, key: Key) -> Value:
        """Return the value of `key`."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = self._make(key)
        self.held_bytes += self._nbytes(value)
        while self.held_bytes > self._limit_bytes and len(self._values) > 1:
            _, oldest = self._values.popitem(last=False)
            self.held_bytes -= self._nbytes(oldest)
        return value
