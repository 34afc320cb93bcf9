"""What Apple Silicon would do by the same arithmetic: a prediction, from public figures of the chips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from costs.shape import Shape

# Of the stated peaks, what prefill and decoding reach. llama.cpp (pull request 2891) measured 753 and 41 tokens/s for a
# 7B model in half precision on an M2 Ultra: 37 % of 27 TFLOP/s, and 70 % of 800 GB/s; prefill has become faster since.
_COMPUTE_SHARE = 0.5
_BANDWIDTH_SHARE = 0.7

# Half precision.
_WEIGHT_BYTES = 2

# A GPU's queue and the Python around a step; a guess, and small against the steps of such a model.
_STEP_S = 0.004


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """The largest GPU of a chip: peak TFLOP/s in single precision (half is no faster), and GB/s of its memory."""

    name: str
    tflops: float
    gb_per_s: float


CHIPS = (
    Chip(name="M1", tflops=2.6, gb_per_s=68),
    Chip(name="M1 Pro", tflops=5.2, gb_per_s=200),
    Chip(name="M1 Max", tflops=10.4, gb_per_s=400),
    Chip(name="M2", tflops=3.6, gb_per_s=100),
    Chip(name="M2 Pro", tflops=6.8, gb_per_s=200),
    Chip(name="M2 Max", tflops=13.6, gb_per_s=400),
    Chip(name="M3", tflops=3.6, gb_per_s=100),
    Chip(name="M3 Pro", tflops=6.4, gb_per_s=150),
    Chip(name="M3 Max", tflops=14.3, gb_per_s=400),
    Chip(name="M4", tflops=3.8, gb_per_s=120),
    Chip(name="M4 Pro", tflops=8.1, gb_per_s=273),
    Chip(name="M4 Max", tflops=17.2, gb_per_s=546),
)

# Qwen3-VL-2B, ADR-006's model, by its published configuration.
QWEN3_VL_2B = Shape(
    hidden=2048,
    inter=6144,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocab=151936,
    vision_hidden=1024,
    vision_inter=4096,
    vision_layers=24,
)

# ADR-006's instructions in Qwen's tokens, roughly, and a record as that model writes it.
_SHARED_TOKENS = 110
_FRESH_TEXT_TOKENS = 20
RECORD_TOKENS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Frames per second of `chip`, and the shares of a frame's time."""

    chip: Chip
    image_tokens: int
    width: int
    frames_per_s: float
    vision_share: float
    prefill_share: float
    decode_share: float


def predictions(image_tokens: int, width: int) -> Iterator[Prediction]:
    """Yield what each chip would do with Qwen3-VL-2B in half precision."""
    shape = QWEN3_VL_2B
    fresh = image_tokens + _FRESH_TEXT_TOKENS
    context = _SHARED_TOKENS + fresh + RECORD_TOKENS / 2
    for chip in CHIPS:
        flops = chip.tflops * 1e12 * _COMPUTE_SHARE
        bandwidth = chip.gb_per_s * 1e9 * _BANDWIDTH_SHARE
        vision = shape.vision_flop(image_tokens) / flops
        prefill = shape.prefill_flop(fresh, _SHARED_TOKENS) / flops
        kv_bytes = width * context * 2 * shape.layers * shape.kv_heads * shape.head_dim * _WEIGHT_BYTES
        read = (shape.text_weights * _WEIGHT_BYTES + kv_bytes) / bandwidth
        step = max(read, shape.decode_flop(width, context) / flops) + _STEP_S
        decode = step * RECORD_TOKENS / width
        seconds = vision + prefill + decode
        yield Prediction(
            chip=chip,
            image_tokens=image_tokens,
            width=width,
            frames_per_s=1 / seconds,
            vision_share=vision / seconds,
            prefill_share=prefill / seconds,
            decode_share=decode / seconds,
        )
