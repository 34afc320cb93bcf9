"""The hints of `vlmd bench` follow the figures."""

from __future__ import annotations

import msgspec
import pytest

from vlmd_bridge.bench.advice import hints
from vlmd_bridge.bench.figures import Figures, Optimisation

_GOOD = Figures(
    model="m",
    frames=16,
    frames_per_s=20.0,
    first_result_s=0.2,
    tokens_per_s=600.0,
    record_tokens=30.0,
    prompt_tokens=160,
    image_tokens=40,
    load_s=3.0,
    memory_bytes={"daemon": 30_000_000, "engine": 300_000_000},
    machine_memory_bytes=8_000_000_000,
    engine_busy=0.97,
    images_busy=0.3,
    image_processes=1,
    cores=2,
    load=1.9,
    width=8,
    blas="/usr/lib/libopenblas.so.0",
    device="cpu",
    dtype="float32",
    threads=1,
    optimisations=[Optimisation(name="shared_prefix", gain=1.2, low=1.1, high=1.3, turns=3)],
)


def test_good_figures_need_no_change() -> None:
    assert hints(_GOOD) == ["Nothing stands out: what is left is the engine's own work."]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"blas": "reference"}, "libopenblas0-pthread"),
        ({"images_busy": 0.95, "engine_busy": 0.5}, "image_processes to 2"),
        ({"image_tokens": 2040, "prompt_tokens": 2160}, "max_image_pixels"),
        ({"width": 2}, "set width to 8"),
        ({"load": 9.0}, "when it is idle"),
        ({"memory_bytes": {"engine": 7_000_000_000}}, "quantised"),
        (
            {"optimisations": [Optimisation(name="own_decode", gain=0.8, low=0.75, high=0.85, turns=3)]},
            "VLMD_ENGINE_OFF=own_decode",
        ),
    ],
)
def test_a_figure_that_stands_out_is_named_with_its_setting(changed: dict[str, object], words: str) -> None:
    (hint,) = hints(msgspec.structs.replace(_GOOD, **changed))
    assert words in hint


@pytest.mark.parametrize(
    "changed",
    [
        {"images_busy": 0.95},  # the engine is busy too
        {"image_tokens": 250, "prompt_tokens": 300},  # most of the prompt, but few
        {"image_tokens": 400, "prompt_tokens": 2000},  # many, but the prompt is the caller's
        {"optimisations": [Optimisation(name="own_decode", gain=0.9, low=0.7, high=1.1, turns=3)]},  # noise
    ],
)
def test_a_figure_within_bounds_is_not(changed: dict[str, object]) -> None:
    assert hints(msgspec.structs.replace(_GOOD, **changed)) == hints(_GOOD)
