"""Which model to name to somebody who named none."""

from __future__ import annotations

import platform
import sys
from typing import Final

from vlmd_bridge.machine import memory_bytes

_GIB: Final = 1024**3

_SMALL: Final = "mlx-community/Qwen3-VL-4B-Instruct-4bit"
_MEASURED: Final = "mlx-community/Qwen3-VL-2B-Instruct-bf16"

# By platform: memory from which a model is recommended, the largest first. ADR-006 measured the bf16 model of about
# 4 GB next to an app on Apple Silicon. On a CPU it runs in float32, twice that. The 4-bit one needs about 3 GB.
_TABLE: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "metal": ((16 * _GIB, _MEASURED), (0, _SMALL)),
    "cpu": ((24 * _GIB, _MEASURED), (0, _SMALL)),
}


def recommended_model(*, metal: bool | None = None, memory: int | None = None) -> str:
    """Return the name of a vision model that suits this machine (or the one described)."""
    metal = sys.platform == "darwin" and platform.machine() == "arm64" if metal is None else metal
    memory = memory_bytes() if memory is None else memory
    table = _TABLE["metal" if metal else "cpu"]
    return next(name for least, name in table if memory >= least)


def no_model_message() -> str:
    """Return what to tell somebody who named no model: how to get one, and that a demonstration needs none."""
    name = recommended_model()
    return (
        "No model is named and none is configured. "
        f"For this machine: `hf download {name}` gets one, `--model {name}` (or VLMD_MODEL, or `model` in the "
        "configuration file) uses it. To try vlmd without a download: `--model demo`, a tiny model that knows only the "
        "demonstration's own screens."
    )
