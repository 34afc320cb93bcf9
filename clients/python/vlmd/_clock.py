"""The clock of deadlines: it stands still while this process cannot run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# A wait for a deadline is cut into pieces of this length, so that a pause is seen.
SLICE_S = 1.0

# A piece that took so much longer was a pause: the machine slept, or this process was stopped. A busy machine delays a
# wake-up by tenths of a second.
_PAUSE_S = 1.5


class AwakeClock:
    """A monotonic clock without the pauses that were noticed.

    An answer that came while we could not run waits to be read: no deadline may pass before it is. Linux stops
    CLOCK_MONOTONIC while the machine sleeps, macOS stops the clock behind `time.monotonic`, neither stops it for
    SIGSTOP; here all are alike. Used by many threads at once.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._paused_s = 0.0
        self._paused_until_s = 0.0

    def now_s(self) -> float:
        """Return the time."""
        return self._monotonic() - self._paused_s

    def slice_s(self, until_s: float) -> float:
        """Return how long to wait before the next look at the clock, on the way to `until_s`."""
        return min(SLICE_S, max(0.0, until_s - self.now_s()))

    def began(self) -> float:
        """Return what `ended` wants to know of the beginning of a wait."""
        return self._monotonic()

    def ended(self, began: float, asked_s: float) -> None:
        """Note that a wait of `asked_s` ended, and with it a pause, if it took much longer."""
        now_s = self._monotonic()
        due_s = began + asked_s
        if now_s - due_s < _PAUSE_S:
            return
        with self._lock:  # several threads notice the same pause
            self._paused_s += max(0.0, now_s - max(due_s, self._paused_until_s))
            self._paused_until_s = max(self._paused_until_s, now_s)
