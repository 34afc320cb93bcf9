"""The cost model's own arithmetic: weights as a checkpoint has them, overheads found again, limits that must hold."""

from __future__ import annotations

import json
import struct
from dataclasses import astuple, replace
from math import prod
from pathlib import Path

import pytest

from costs.apple import predictions
from costs.engine import Work
from costs.model import Overheads, arithmetic, fit, predict
from costs.rates import Rates
from costs.shape import Shape
from vlmd_bridge.demo import MODEL_PATH

_RATES = Rates(rows=(1, 8, 64), sides=(64, 1024), gflops=((1, 4, 16), (2, 8, 32)), exponential_s=1e-8)
_OVERHEADS = Overheads(row=0.003, row_layer=0.0004, token=0.0001, token_layer=0.00003, step=0.0005, step_layer=0.0002)
_WORK = Work(
    seconds=0,
    frames=12,
    width=8,
    prompt_tokens=157,
    shared_tokens=110,
    image_tokens=40,
    record_tokens=30,
    forced_tokens=20,
)


def _demo() -> Shape:
    return Shape.of(MODEL_PATH)


def test_weights_are_those_of_the_checkpoint() -> None:
    with (Path(MODEL_PATH) / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    held = {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    layers = sum(
        count for name, count in held.items() if "layers." in name and "language" in name and "norm" not in name
    )
    assert _demo().layers * _demo().layer_weights == layers


@pytest.mark.parametrize(
    ("rows", "side", "rate"), [(1, 64, 1), (8, 1024, 8), (64, 64, 16), (8, 256, 4 * 2**0.5), (1000, 5000, 32)]
)
def test_rates_between_and_beyond_what_was_measured(rows: float, side: float, rate: float) -> None:
    assert _RATES.at(rows, side) == pytest.approx(rate)


def test_overheads_are_found_again() -> None:
    runs = []
    for layers in (2, 10):
        shape = replace(_demo(), layers=layers)
        for width in (1, 8):
            for tokens in (40, 100):
                work = replace(_WORK, width=width, record_tokens=tokens)
                runs.append((shape, replace(work, seconds=predict(shape, work, _RATES, _OVERHEADS).seconds)))
    assert astuple(fit(runs, _RATES)) == pytest.approx(astuple(_OVERHEADS), rel=1e-6)


def test_no_overhead_is_negative() -> None:
    # Less time than the arithmetic takes: nothing is left for overheads.
    runs = [(_demo(), replace(_WORK, width=width, seconds=1e-6)) for width in (1, 8)]
    assert min(astuple(fit(runs, _RATES))) >= 0


def test_what_is_longer_takes_longer() -> None:
    base = sum(arithmetic(_demo(), _WORK, _RATES))
    for name, value in (("prompt_tokens", 400), ("record_tokens", 60), ("image_tokens", 160), ("width", 1)):
        assert sum(arithmetic(_demo(), replace(_WORK, **{name: value}), _RATES)) > base, name


def test_apples_predictions_follow_chip_and_tokens() -> None:
    whole, small = ({each.chip.name: each for each in predictions(tokens, 8)} for tokens in (1000, 250))
    assert whole["M1"].frames_per_s < whole["M1 Pro"].frames_per_s < whole["M1 Max"].frames_per_s
    for name, each in small.items():
        assert each.frames_per_s > whole[name].frames_per_s
        assert each.vision_share + each.prefill_share + each.decode_share == pytest.approx(1)
