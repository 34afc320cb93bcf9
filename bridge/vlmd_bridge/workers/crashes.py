"""How often an engine may crash before it rests: docs/decisions/0019. No clock of its own."""

from __future__ import annotations

from collections import deque

# So many crashes in a row, none of which had a finished sequence before it, are no accident.
MAX_CRASHES = 5

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 10.0


class CrashCounter:
    """Counts the crashes since anything last succeeded.

    How long ago they were is measured by the time that the engine was ready since. Nothing can succeed in a load, so
    none makes an earlier crash any older: else an engine whose loads die slowly would be loaded again without end.
    """

    def __init__(self, window_s: float) -> None:
        """`window_s`: crashes longer ago are forgotten, and an engine that crashed too often rests for as long."""
        self.window_s = window_s
        self._ready_s = 0.0
        self._crashes_s: deque[float] = deque(maxlen=MAX_CRASHES)

    def progressed(self) -> None:
        """A sequence was finished: the engine works, and what crashed it before was something in particular."""
        self._crashes_s.clear()

    def crashed(self, ready_s: float) -> int:
        """Note a crash after `ready_s` of being ready, 0 in a load; return how many there were, this one included."""
        self._ready_s += ready_s
        self._crashes_s.append(self._ready_s)
        while self._ready_s - self._crashes_s[0] >= self.window_s:
            self._crashes_s.popleft()
        return len(self._crashes_s)

    def backoff_s(self) -> float:
        """Return how long to wait before the next start: a little at first, twice as long each time."""
        delay_s: float = _FIRST_BACKOFF_S * 2 ** (len(self._crashes_s) - 1)
        return min(delay_s, _MAX_BACKOFF_S)
