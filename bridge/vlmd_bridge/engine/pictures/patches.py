"""From RGB pixels to the patches that a Qwen-VL vision tower takes, in the order and with the values of its processor.

The model's own processor does the same through PIL, a transposed copy and five more passes over the pixels; here it is
one. ``tests/engine/test_tower.py`` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

# The processor whose `_process_one` this repeats (mlx-vlm 0.7.10, `models/qwen3_vl/processing_qwen3_vl.py`).
_PROCESSOR = "Qwen3VLImageProcessor"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The patches of one picture: `rows` times `columns`, merged in squares of `merge` by `merge`."""

    rows: int
    columns: int
    merge: int

    @property
    def thw(self) -> tuple[int, int, int]:
        """The grid as the model's code has it: time, height, width."""
        return 1, self.rows, self.columns

    @property
    def patches(self) -> int:
        """Patches of the picture."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens that the picture takes in a prompt."""
        return self.patches // self.merge**2


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchLayout:
    """How a processor cuts and normalises: patches of `patch` pixels a side, merged in squares of `merge` a side.

    Values become ``(pixel * factor - mean) / std``, by channel. A patch is repeated `repeats` times along time, as if
    the picture were a video that stands still.
    """

    patch: int
    merge: int
    repeats: int
    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, image_processor: Any) -> Self | None:
        """Return the layout of `image_processor`, or None for one that works otherwise."""
        if type(image_processor).__name__ != _PROCESSOR:
            return None
        if not (image_processor.do_rescale and image_processor.do_normalize):
            return None
        mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        if len(mean) != 3 or len(std) != 3:
            return None
        return cls(
            patch=int(image_processor.patch_size),
            merge=int(image_processor.merge_size),
            repeats=int(image_processor.temporal_patch_size),
            factor=float(image_processor.rescale_factor),
            mean=mean,
            std=std,
        )

    def grid(self, width: int, height: int) -> Grid:
        """Return the patches of a picture whose sides are multiples of ``patch * merge`` pixels."""
        return Grid(rows=height // self.patch, columns=width // self.patch, merge=self.merge)

    def cut(self, pixels: npt.NDArray[np.uint8], width: int, height: int) -> Floats:
        """Return the patches, ``(rows * columns, patch * patch * 3)``, each with its pixels in rows, channels last.

        Patches that are merged stand together, as in the processor's own output (see `as_processed`).
        """
        grid, patch, merge = self.grid(width, height), self.patch, self.merge
        blocks = pixels.reshape(grid.rows // merge, merge, patch, grid.columns // merge, merge, patch * 3)
        cut = np.empty((grid.rows // merge, grid.columns // merge, merge, merge, patch, patch * 3), np.float32)
        np.multiply(blocks.transpose(0, 3, 1, 4, 2, 5), np.float32(self.factor), out=cut)
        patches = cut.reshape(grid.patches, patch * patch * 3)
        patches -= np.tile(np.asarray(self.mean, np.float32), patch * patch)
        patches /= np.tile(np.asarray(self.std, np.float32), patch * patch)
        return patches

    def as_processed(self, patches: Floats) -> Floats:
        """Return `patches` as the processor writes them: channels first, and repeated along time."""
        planes = patches.reshape(len(patches), self.patch, self.patch, 3).transpose(0, 3, 1, 2)
        shape = (len(patches), 3, self.repeats, self.patch, self.patch)
        return np.broadcast_to(planes[:, :, None], shape).reshape(len(patches), -1)
