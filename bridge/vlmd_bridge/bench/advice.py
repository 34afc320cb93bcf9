"""What to change, by the figures. Each hint names the setting and the figure that speaks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vlmd_bridge.bench.figures import Figures

# From these shares on, one side waits for the other.
_BUSY: Final = 0.85
_IDLE: Final = 0.7

# Where image tokens are this much of a prompt, and many, prefill is mostly theirs.
_IMAGE_SHARE: Final = 0.6
_MANY_IMAGE_TOKENS: Final = 300

# Below this a step hardly shares the reading of the weights among its rows.
_NARROW: Final = 4

# Above it the rest of the machine begins to swap.
_MEMORY_SHARE: Final = 0.7

# This command alone keeps two processes busy, and a little more at the start.
_BUSY_MACHINE: Final = 1.75

# An optimisation that costs more than noise does.
_LOSS: Final = 0.95


def hints(figures: Figures) -> list[str]:
    """Return what would make it faster, the most promising first; or one line that nothing stands out."""
    return list(_hints(figures)) or ["Nothing stands out: what is left is the engine's own work."]


def _hints(figures: Figures) -> Iterator[str]:
    if figures.load > _BUSY_MACHINE * figures.cores:
        yield (
            f"The machine is busy with other things (load {figures.load:.1f} on {figures.cores} cores): "
            "run it again when it is idle."
        )
    if figures.blas == "reference":
        yield (
            "The reference BLAS computes: OpenBLAS is ten times as fast. "
            "Install it (Debian and Ubuntu: apt-get install libopenblas0-pthread); `vlmd status` shows what is used."
        )
    if figures.images_busy > _BUSY and figures.engine_busy < _IDLE:
        yield (
            f"Opening pictures is the bottleneck (image process {figures.images_busy:.0%} busy, engine "
            f"{figures.engine_busy:.0%}): set image_processes to {figures.image_processes + 1}, or give JPEG, "
            "which opens faster than PNG."
        )
    share = figures.image_tokens / figures.prompt_tokens
    if figures.image_tokens >= _MANY_IMAGE_TOKENS and share > _IMAGE_SHARE:
        yield (
            f"{share:.0%} of a prompt are the image's {figures.image_tokens} tokens: a lower max_image_pixels makes "
            "fewer of them; half the pixels, half the tokens. Look at what it does to the answers."
        )
    if figures.width < _NARROW:
        yield f"Only {figures.width} frames are decoded together: set width to 8, or to 0 for the engine's own choice."
    engine_bytes = figures.memory_bytes.get("engine", 0)
    if engine_bytes > _MEMORY_SHARE * figures.machine_memory_bytes:
        yield (
            f"The engine holds {engine_bytes / figures.machine_memory_bytes:.0%} of the memory: "
            "a quantised or smaller model leaves room for more rows."
        )
    for each in figures.optimisations:
        if each.high < _LOSS:
            yield f"{each.name} does not pay here ({each.gain:.2f} x): VLMD_ENGINE_OFF={each.name} goes without it."
