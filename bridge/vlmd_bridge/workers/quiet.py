"""How long a process that has work has shown no progress. No clock of its own."""

from __future__ import annotations

# How often the time is added up: so often, or several times within the limit.
_TICK_S = 1.0
_TICKS = 4

# A tick that took so many times as long: this process was stopped, or the machine slept. What the worker said meanwhile
# waits to be read, and how long it was quiet cannot be told.
_PAUSED = 2

# A process that computes all the while may be in one long step, the prefill of a large picture on a slow machine.
_BUSY_FACTOR = 10
_BUSY_SHARE = 0.2


class Quiet:
    """Adds up the time without a sign of progress, the time that this process itself did not run left out."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.quiet_s = 0.0
        self._cpu_began_s: float | None = None
        self._cpu_s = 0.0

    @property
    def tick_s(self) -> float:
        """How often `tick` is to be called."""
        return min(_TICK_S, self.limit_s / _TICKS)

    def progress(self) -> None:
        """There was some, or there is nothing to do."""
        self.quiet_s = 0.0
        self._cpu_began_s = None

    def tick(self, elapsed_s: float, cpu_s: float | None = None) -> None:
        """Time passed; `cpu_s` is the processor time that the process has used so far, where it can be told."""
        if elapsed_s < _PAUSED * self.tick_s:
            self.quiet_s += elapsed_s
        if cpu_s is not None:
            if self._cpu_began_s is None:
                self._cpu_began_s = cpu_s
            self._cpu_s = cpu_s - self._cpu_began_s

    @property
    def hung(self) -> bool:
        """Whether it was quiet for too long; one that computes is given ten times as long."""
        if self.quiet_s < self.limit_s:
            return False
        computes = self._cpu_began_s is not None and self._cpu_s > _BUSY_SHARE * self.quiet_s
        return not computes or self.quiet_s >= _BUSY_FACTOR * self.limit_s
