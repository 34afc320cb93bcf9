"""The cost model: what a frame takes, of arithmetic that is counted and overheads that are fitted.

    seconds a frame = row + row_layer · layers                              Python and small operations of a row
                    + vision(image tokens) / rate                           the vision tower
                    + prefill(prompt tokens that are not shared) / rate
                    + steps · (token + token_layer · layers)                sampling, grammar, text, attention
                    + steps / width · (step + step_layer · layers + decode(width) / rate)
                    + decode(tokens forced by the grammar, a run at once) / rate

A record's steps are the tokens that the grammar leaves free, and one for each run of those it forces. The rates are
those of matrix products of that many rows and that size of matrix (`rates`). Prefill and decode include exponentials,
of gates and attention, which MLX computes one at a time on a CPU. The six overheads are
fitted on models so small that nothing else counts. Frames/s of a daemon are the smaller of this one's and of
``image processes / seconds to open a picture``: both run at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from costs.engine import FORCED_RUNS, Work
from costs.rates import Rates
from costs.shape import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Seconds that do not depend on the size of matrices."""

    row: float
    row_layer: float
    token: float
    token_layer: float
    step: float
    step_layer: float


_NAMES = tuple(field.name for field in fields(Overheads))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds of one frame by part."""

    vision: float
    prefill: float
    decode: float
    overhead: float

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.vision + self.prefill + self.decode + self.overhead


def predict(shape: Shape, work: Work, rates: Rates, overheads: Overheads) -> Cost:
    """Return what a frame of `work` costs; its `seconds` are not looked at."""
    vision, prefill, decode = arithmetic(shape, work, rates)
    return Cost(
        vision=vision,
        prefill=prefill,
        decode=decode,
        overhead=float(np.dot(_counts(shape, work), astuple(overheads))),
    )


def arithmetic(shape: Shape, work: Work, rates: Rates) -> tuple[float, float, float]:
    """Return the seconds of vision tower, prefill and decode, by their matrix products and exponentials."""
    fresh = work.prompt_tokens - work.shared_tokens
    context = work.prompt_tokens + work.record_tokens / 2
    patches = work.image_tokens * shape.merge
    vision = shape.vision_flop(work.image_tokens) / rates.at(patches, shape.vision_side)
    prefill = shape.prefill_flop(fresh, work.shared_tokens) / rates.at(fresh, shape.side)
    step = shape.decode_flop(work.width, context) / rates.at(work.width, shape.side)
    extra = work.forced_tokens - FORCED_RUNS  # beside the first of each run, in the same forward pass
    rows = work.width * work.forced_tokens / FORCED_RUNS
    forced = shape.decode_flop(extra, context) / rates.at(rows, shape.side)
    gates = rates.exponential_s * shape.exponentials(fresh, work.prompt_tokens)
    decode_gates = rates.exponential_s * shape.exponentials(work.record_tokens, context)
    return vision * 1e-9, prefill * 1e-9 + gates, (step * _steps(work) + forced) * 1e-9 + decode_gates


def fit(runs: Sequence[tuple[Shape, Work]], rates: Rates) -> Overheads:
    """Return the overheads that explain `runs` best, none of them negative; errors count relative to the run."""
    left = np.array([work.seconds - sum(arithmetic(shape, work, rates)) for shape, work in runs])
    counts = np.array([_counts(shape, work) for shape, work in runs])
    weights = 1 / np.array([work.seconds for _, work in runs])
    kept = list(range(counts.shape[1]))
    values = np.zeros(counts.shape[1])
    while kept:
        solved, *_ = np.linalg.lstsq(counts[:, kept] * weights[:, None], left * weights, rcond=None)
        if (solved >= 0).all():
            values[kept] = solved
            break
        kept.pop(int(np.argmin(solved)))
    return Overheads(**{name: float(value) for name, value in zip(_NAMES, values, strict=True)})


def _counts(shape: Shape, work: Work) -> tuple[float, ...]:
    """Return how often a frame pays for each overhead, in the order of `Overheads`."""
    return 1, shape.layers, work.steps, work.steps * shape.layers, _steps(work), _steps(work) * shape.layers


def _steps(work: Work) -> float:
    """Return the batch's steps that one frame accounts for; a batch fills row by row, which a short job notices."""
    return work.steps / work.width + (work.width - 1) / work.frames
