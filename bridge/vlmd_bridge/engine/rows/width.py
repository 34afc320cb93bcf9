"""Chooses the batch width by measuring decode steps of several widths when a model has been loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping

import mlx.core as mx

from vlmd_bridge.engine.batch import FRONT_SLOTS
from vlmd_bridge.engine.rows.language import Language

# What stands where nothing is measured; docs/engine.md has the figures.
DEFAULT_WIDTH = 8

# 16 rows cost the demo model 6 % less CPU time a frame, but its first line of 4 frames came after 47 % of a job of 48
# instead of 22 %: frames that run together end together.
_WIDTHS = (1, 2, 4, 8)

# A frame's prompt, its picture and half of its answer.
_ROW_TOKENS = 256

# Of these the quickest counts: others were disturbed.
_STEPS = 3

# Then the widths measured so far must do. A model whose steps are that long is told apart by few of them.
_TIME_LIMIT_S = 1.5

# The widest batch whose throughput is worth its longer steps: one within this of the best.
_TOLERANCE = 0.05

# There is memory for so many tokens in each row: a frame, and a few turns about it. Longer rows wait for each other.
_COUNTED_ROW_TOKENS = 1024


def choose_width(language: Language, rows_bytes: int) -> tuple[int, dict[int, float]]:
    """Return the smallest width within 5 % of the best throughput, and the seconds of a step by width.

    `rows_bytes` is for the states of all rows, those in front too.
    """
    state = language.begin()
    began_s = time.monotonic()
    language.prefill(state, [0] * _ROW_TOKENS, _blank(language), 0)
    arrays = state.arrays()
    mx.eval(arrays)
    row_bytes = sum(array.nbytes for array in arrays) * _COUNTED_ROW_TOKENS // _ROW_TOKENS
    widest = max(1, rows_bytes // row_bytes - FRONT_SLOTS)
    steps_s: dict[int, float] = {}
    joined = 0
    for width in _WIDTHS:
        if steps_s and (width > widest or time.monotonic() - began_s > _TIME_LIMIT_S):
            break
        while joined < width:
            language.join(joined, state.copy())
            joined += 1
        steps_s[width] = min(_step_s(language, width, nth) for nth in range(_STEPS + 1))
    language.clear()
    return _smallest(steps_s, widest), steps_s


def _blank(language: Language) -> dict[str, mx.array]:
    return {
        "inputs_embeds": mx.zeros((1, _ROW_TOKENS, language.hidden_size), dtype=language.dtype),
        "position_ids": mx.broadcast_to(mx.arange(_ROW_TOKENS), (3, 1, _ROW_TOKENS)),
        "rope_deltas": mx.zeros((1, 1), dtype=mx.int32),
    }


def _smallest(steps_s: Mapping[int, float], widest: int) -> int:
    if DEFAULT_WIDTH not in steps_s:  # too slow to measure, or too little memory
        return min(DEFAULT_WIDTH, widest)
    best = max(width / step_s for width, step_s in steps_s.items())
    return min(width for width, step_s in steps_s.items() if width / step_s >= best * (1 - _TOLERANCE))


def _step_s(language: Language, width: int, nth: int) -> float:
    # A busy machine does not change what CPU time a step takes; what a GPU takes is seen by the clock alone.
    clock = time.perf_counter if mx.metal.is_available() else time.process_time
    began_s = clock()
    tokens = mx.zeros((width,), dtype=mx.int32)
    logits = language.decode(tokens, [(slot, _ROW_TOKENS + nth, 1, 0) for slot in range(width)])
    mx.eval(mx.argmax(logits, axis=-1), language.states())
    return clock() - began_s
