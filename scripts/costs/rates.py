"""How fast matrix products are: GFLOP/s by rows and by size of matrix, measured, with values between interpolated."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Rows of a product: decode steps have up to the batch width, prefill and vision tower hundreds.
_ROWS = (1, 2, 4, 8, 16, 48, 128, 384)

_SIDES = (64, 128, 256, 512, 1024)

# Matrices that are gone through one after the other, as a forward pass does: eight layers of seven. So that weights
# come from where those of a model of that size come from, a cache or the memory.
_MATRICES = 56

_EXPONENTIALS = 1 << 18
_EXPONENTIAL_ROUNDS = 5

# Seconds, of wall or processor.
Clock = Callable[[], float]

_LEAST_S = 0.04


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """GFLOP/s for each of `sides`, in it for each of `rows`; and the seconds of one exponential."""

    rows: Sequence[int]
    sides: Sequence[int]
    gflops: Sequence[Sequence[float]]
    exponential_s: float

    def at(self, rows: float, side: float) -> float:
        """Return GFLOP/s, interpolated on logarithmic axes; beyond the table, its edge's."""
        low, high, share = _between(self.sides, side)
        return math.exp((1 - share) * math.log(self._row(low, rows)) + share * math.log(self._row(high, rows)))

    def _row(self, index: int, rows: float) -> float:
        low, high, share = _between(self.rows, rows)
        values = self.gflops[index]
        return math.exp((1 - share) * math.log(values[low]) + share * math.log(values[high]))


def measure_rates(clock: Clock) -> Rates:
    """Measure on MLX's default device."""
    gflops = [[_gflops(rows, side, clock) for rows in _ROWS] for side in _SIDES]
    return Rates(rows=_ROWS, sides=_SIDES, gflops=gflops, exponential_s=_exponential_s(clock))


def _exponential_s(clock: Clock) -> float:
    import mlx.core as mx

    x = mx.random.normal((_EXPONENTIALS,))
    mx.eval(x)
    times = []
    for _ in range(_EXPONENTIAL_ROUNDS):
        begin_s = clock()
        mx.eval(mx.sigmoid(x))
        times.append(clock() - begin_s)
    return min(times) / _EXPONENTIALS


def _gflops(rows: int, side: int, clock: Clock) -> float:
    import mlx.core as mx

    weights = [mx.random.normal((side, side)) * 0.05 for _ in range(_MATRICES)]
    x = mx.random.normal((rows, side))
    mx.eval(weights, x)

    def once() -> None:
        y = x
        for weight in weights:
            y = y @ weight  # the order in which the engine keeps weights on a CPU
        mx.eval(y)

    once()
    times: list[float] = []
    while sum(times) < _LEAST_S or len(times) < 2:
        begin_s = clock()
        once()
        times.append(clock() - begin_s)
    # The best: noise only ever adds.
    return 2e-9 * rows * side * side * _MATRICES / min(times)


def _between(axis: Sequence[int], value: float) -> tuple[int, int, float]:
    """Return the neighbours of `value` on `axis`, and how far it is from the first to the second."""
    value = min(max(value, axis[0]), axis[-1])
    high = min(max(1, bisect.bisect_left(axis, value)), len(axis) - 1)
    low = high - 1
    return low, high, math.log(value / axis[low]) / math.log(axis[high] / axis[low])
