"""The weights of a loaded model: fitted to the device, what there is to say of them, and their end."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

# What mlx-vlm and mlx-lm raise for folders that are not what they should be.
LOAD_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, ImportError, AttributeError, RuntimeError)


def fit_to_device(model: Any) -> None:
    """Read the weights of `model`, which was loaded lazily, in the type that the device computes fast in."""
    if not mx.metal.is_available():
        # bfloat16 and float16 products run at 5 GFLOP/s on the CPU, float32 at 100 and more. Scales and biases of
        # quantized layers too: they decide the type that the products of these layers are computed in. Packed weights
        # are integers and stay.
        model.set_dtype(mx.float32)
        # On the CPU a compiled function is C++ that MLX hands to the machine's compiler: seconds at the first use of
        # each shape, an error where there is none, and no measurable gain.
        mx.disable_compile()
        for _, module in model.named_modules():
            if type(module) is nn.Linear:
                # A layer multiplies by the transposed weight: kept that way, `sgemm` packs it in long runs. Of few rows
                # packing is most of a product.
                module.weight = mx.contiguous(module.weight.T).T
    mx.eval(model.parameters())


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def weight_dtype(model: Any) -> str:
    """Return the type of the larger part of the weights, or the packed width: ``4-bit``."""
    bits = {module.bits for _, module in model.named_modules() if hasattr(module, "bits")}
    if bits:
        return f"{min(bits)}-bit"
    sizes: dict[str, int] = {}
    for _, array in tree_flatten(model.parameters()):
        name = str(array.dtype).removeprefix("mlx.core.")
        sizes[name] = sizes.get(name, 0) + array.nbytes
    return max(sizes, key=lambda name: sizes[name])


def release_streams() -> None:
    """Release the streams of this thread at its end: without this the interpreter aborts at exit, 3 times of 4."""
    mx.clear_streams()
