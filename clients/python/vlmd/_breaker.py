"""When to stop starting a daemon that crashes again and again. No clock of its own."""

from __future__ import annotations

import random
from collections import deque

# So many crashes within so many seconds are a loop: starting once more would only heat the machine.
MAX_CRASHES = 5
WINDOW_S = 180.0

# Exponential backoff with jitter; the jitter keeps several clients from restarting in step.
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 5.0


class Breaker:
    """Counts crashes."""

    def __init__(self) -> None:
        self._crashes_s: deque[float] = deque(maxlen=MAX_CRASHES)

    def note(self, now_s: float) -> None:
        """Note a crash."""
        self._crashes_s.append(now_s)

    def is_loop(self, now_s: float) -> bool:
        """Whether the last `MAX_CRASHES` fell within `WINDOW_S`."""
        return self._recent(now_s) >= MAX_CRASHES

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait before the next start."""
        if not (recent := self._recent(now_s)):
            return 0.0
        delay_s: float = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (recent - 1))
        return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _recent(self, now_s: float) -> int:
        return sum(now_s - crash_s < WINDOW_S for crash_s in self._crashes_s)
