"""Fits the cost model on this machine, checks it on three sizes of model, and prints predicted beside measured."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.frames import draw_frames
from benchmark.report import put_between_markers, table_lines
from costs.apple import RECORD_TOKENS, predictions
from costs.checkpoints import Size, build
from costs.engine import Engine, Work
from costs.model import Cost, Overheads, fit, predict
from costs.rates import Rates, measure_rates
from costs.shape import Shape
from vlmd_bridge.engine.platform import Blas

# So small that overheads are all there is; two depths tell a layer's from a row's, two widths a step's from a token's.
_CALIBRATION = (
    Size(name="shallow", hidden=64, inter=128, layers=2, vision_hidden=64, vision_inter=128, vision_layers=2),
    Size(name="deep", hidden=64, inter=128, layers=10, vision_hidden=64, vision_inter=128, vision_layers=2),
)
_CALIBRATION_WIDTHS = (1, 8)
_CALIBRATION_TOKENS = (40, 100)

_SMALL = Size(name="3 M", hidden=192, inter=480, layers=4)
_MEDIUM = Size(
    name="25 M", hidden=512, inter=1408, layers=8, head_dim=64, vision_hidden=256, vision_inter=512, vision_layers=4
)
_MEDIUM_160 = Size(
    name="25 M", hidden=512, inter=1408, layers=8, head_dim=64, vision_hidden=256, vision_inter=512, vision_layers=4,
    image_tokens=160,
)  # fmt: skip
_LARGE = Size(
    name="100 M", hidden=896, inter=2432, layers=12, head_dim=64, vision_hidden=384, vision_inter=768, vision_layers=6
)

# Model, width, tokens of a record at most: each differs from a neighbour in one thing.
_CHECKS = (
    (_SMALL, 8, 60),
    (_SMALL, 1, 60),
    (_SMALL, 8, 120),
    (_MEDIUM, 8, 60),
    (_MEDIUM, 1, 60),
    (_MEDIUM_160, 8, 60),
    (_LARGE, 8, 60),
    (_LARGE, 1, 60),
)

# Whole batches: the last rows of a job run in a narrower one.
_FRAMES = 16
_LARGE_FRAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One measurement beside its prediction."""

    shape: Shape
    work: Work
    cost: Cost

    @property
    def error(self) -> float:
        """Predicted over measured seconds, less one."""
        return self.cost.seconds / self.work.seconds - 1


def run(blas: Blas, document: Path | None) -> None:
    """Calibrate, check, print; and put the tables into `document`, if any."""
    # Processor time is what an idle machine would take, also on a busy one; but only of one thread, on a CPU.
    clock = time.process_time if blas.threads == 1 and sys.platform != "darwin" else time.perf_counter
    with tempfile.TemporaryDirectory(prefix="vlmd-costs-") as folder:
        paths = draw_frames(Path(folder) / "frames", _FRAMES).paths
        _say("matrix products")
        rates = measure_rates(clock)
        runs = []
        for size in _CALIBRATION:
            checkpoint = build(size, Path(folder) / _folder(size))
            for width in _CALIBRATION_WIDTHS:
                _say(f"calibrating: {size.layers} layers, width {width}")
                engine = Engine(checkpoint, width=width, threads=blas.threads, clock=clock)
                for tokens in _CALIBRATION_TOKENS:
                    work = engine.measure(paths, max_tokens=tokens)
                    runs.append((Shape.of(checkpoint), work))
                    _say(f"  {work.record_tokens:.0f} tokens: {work.seconds * 1000:.1f} ms a frame")
        overheads = fit(runs, rates)
        checks = []
        for size, width, tokens in _CHECKS:
            _say(f"checking: {size.name}, width {width}, {size.image_tokens} image tokens, {tokens} tokens")
            checkpoint = build(size, Path(folder) / _folder(size))
            count = _LARGE_FRAMES if size is _LARGE else _FRAMES
            engine = Engine(checkpoint, width=width, threads=blas.threads, clock=clock)
            work = engine.measure(paths[:count], max_tokens=tokens)
            shape = Shape.of(checkpoint)
            checks.append(Check(shape=shape, work=work, cost=predict(shape, work, rates, overheads)))
            _say(f"  {work.seconds * 1000:.1f} ms a frame, {checks[-1].error:+.0%} predicted")
    tables = {
        "rates": _rates_table(rates),
        "overheads": _overheads_table(overheads, runs, rates),
        "cost": _checks_table(checks),
        "apple": _apple_table(),
    }
    errors = [abs(check.error) for check in checks]
    note = (
        f"{time.strftime('%Y-%m-%d')}, BLAS {Path(blas.name).name} with {blas.threads} threads, engine alone: "
        f"off by {statistics.median(errors):.0%} in the median, by {max(errors):.0%} at most."
    )
    for table in tables.values():
        print("\n" + "\n".join(table_lines(table)))
    print(f"\n{note}")
    if document is not None:
        put_between_markers(document, tables, {"cost-note": note})


def _folder(size: Size) -> str:
    return f"{size.name.replace(' ', '')}-{size.image_tokens}"


def _rates_table(rates: Rates) -> list[list[str]]:
    head = ["GFLOP/s", *(f"{rows} rows" for rows in rates.rows)]
    return [
        head,
        *(
            [f"{side} x {side}", *(f"{value:.1f}" for value in values)]
            for side, values in zip(rates.sides, rates.gflops, strict=True)
        ),
    ]


def _overheads_table(overheads: Overheads, runs: Sequence[tuple[Shape, Work]], rates: Rates) -> list[list[str]]:
    worst = max(abs(predict(shape, work, rates, overheads).seconds / work.seconds - 1) for shape, work in runs)
    return [
        ["overhead", "ms"],
        ["a row", f"{overheads.row * 1000:.2f}"],
        ["a row and layer", f"{overheads.row_layer * 1000:.3f}"],
        ["a token of a row", f"{overheads.token * 1000:.3f}"],
        ["a token of a row and layer", f"{overheads.token_layer * 1000:.3f}"],
        ["a step", f"{overheads.step * 1000:.3f}"],
        ["a step and layer", f"{overheads.step_layer * 1000:.3f}"],
        ["worst error on the calibration", f"{worst:.0%}"],
    ]


def _checks_table(checks: Sequence[Check]) -> list[list[str]]:
    head = ["model", "width", "image tokens", "record tokens", "vision, prefill, decode, overhead: ms"]
    rows = [[*head, "predicted frames/s", "measured", "error"]]
    for check in checks:
        cost, work = check.cost, check.work
        parts = (cost.vision, cost.prefill, cost.decode, cost.overhead)
        rows.append(
            [
                f"{check.shape.weights / 1e6:.1f} M",
                str(work.width),
                f"{work.image_tokens:.0f}",
                f"{work.record_tokens:.0f}",
                ", ".join(f"{part * 1000:.1f}" for part in parts),
                f"{1 / cost.seconds:.2f}",
                f"{1 / work.seconds:.2f}",
                f"{work.seconds / cost.seconds - 1:+.0%}",
            ]
        )
    return rows


def _apple_table() -> list[list[str]]:
    rows = [
        [
            "chip",
            "TFLOP/s, GB/s",
            "1,000 image tokens (1280x800 whole)",
            "250 (max_image_pixels 262144)",
            "shares at 250",
        ]
    ]
    for whole, small in zip(predictions(1000, 8), predictions(250, 8), strict=True):
        shares = (small.vision_share, small.prefill_share, small.decode_share)
        rows.append(
            [
                whole.chip.name,
                f"{whole.chip.tflops:g}, {whole.chip.gb_per_s:g}",
                f"{whole.frames_per_s:.2f} frames/s",
                f"{small.frames_per_s:.2f} frames/s",
                f"vision {shares[0]:.0%}, prefill {shares[1]:.0%}, decode {shares[2]:.0%}",
            ]
        )
    rows.append([f"(records of {RECORD_TOKENS} tokens, width 8)", "", "", "", ""])
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
