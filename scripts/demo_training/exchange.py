"""Training in two processes of one machine: each takes half a batch, and they average what they found.

MLX's CPU operations other than matrix products use one thread; two processes are 1.6 times as fast as two threads.
"""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np

# A process that waits this long for the others has lost them.
_PATIENCE_S = 900.0


class Exchange:
    """Shared memory of `ranks` processes: a gradient for each, and a few numbers that rank 0 decides."""

    def __init__(self, context: SpawnContext, ranks: int, size: int) -> None:
        self.ranks = ranks
        self._size = size
        self._gradients = SharedMemory(create=True, size=4 * size * ranks)
        self._decision = SharedMemory(create=True, size=8 * 2)
        self._barrier: Barrier = context.Barrier(ranks)

    def decide(self, rank: int, progress: float, stage: int) -> tuple[float, int]:
        """Return what rank 0 passed, in every rank."""
        decision = np.ndarray((2,), np.float64, self._decision.buf)
        if rank == 0:
            decision[:] = progress, stage
        self._barrier.wait(_PATIENCE_S)
        return float(decision[0]), int(decision[1])

    def average(self, rank: int, gradient: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        """Return the mean of all ranks' gradients, the same in every rank."""
        gradients = np.ndarray((self.ranks, self._size), np.float32, self._gradients.buf)
        gradients[rank] = gradient
        self._barrier.wait(_PATIENCE_S)
        mean: np.ndarray[Any, Any] = gradients.mean(axis=0)
        # The next `decide` is the barrier that keeps a fast rank from overwriting what a slow one still reads: each
        # rank passes it only after its own `average` returned.
        return mean

    def close(self) -> None:
        """Free the shared memory; called once, by the process that made it."""
        for memory in (self._gradients, self._decision):
            memory.close()
            memory.unlink()
