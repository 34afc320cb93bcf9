"""The vision towers of the Qwen-VL family, fed with patches: in NumPy on a CPU, mlx-vlm's own elsewhere.

What depends on a picture's size alone (position embeddings, rotary angles, windows) is built once for each size, by the
model's own code. ``tests/engine/test_tower.py`` compares with the model's own path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from inspect import unwrap
from typing import Any, Protocol, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from vlmd_bridge.engine.pictures.cpu_layers import Attention, GatedMlp, LayerNorm, Linear, Mlp, RmsNorm, gelu
from vlmd_bridge.engine.pictures.patches import Floats, Grid, PatchLayout
from vlmd_bridge.engine.pictures.sized_cache import SizedCache

# Architectures for which the tests compare both paths. What is not here takes the model's own.
SUPPORTED = frozenset({"qwen3_vl", "qwen3_5", "qwen2_5_vl"})

# The grids of a stream of frames are few, but a large picture's tables may be 30 MB.
_TABLES_BYTES = 64 * 1024**2

Array: TypeAlias = Floats | mx.array


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """A picture as the language model takes it, ``(tokens, width)``: `rows` for its own place in the prompt.

    One of `deepstack` is added behind each of the language model's first layers.
    """

    rows: Array
    deepstack: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What depends on a grid alone: position embeddings of the patches, and the angles of their rotary positions.

    Towers that attend within windows have the bounds between `windows`, and the `order` of the merged patches in them.
    """

    positions: Floats
    cosine: Floats
    sine: Floats
    windows: tuple[int, ...] = ()
    order: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def nbytes(self) -> int:
        """The memory of the arrays."""
        return self.positions.nbytes + self.cosine.nbytes + self.sine.nbytes + self.order.nbytes


class Tower(Protocol):
    """From the patches of a picture to its features. `threads`: whether `run` may be called from any thread."""

    threads: bool

    def tables(self, grid: Grid) -> Tables | None:
        """Return what `run` needs for pictures of `grid`. Only on the thread of MLX."""

    def run(self, patches: Floats, grid: Grid, tables: Tables | None) -> Features:
        """Return the features of one picture."""


def tower_of(model: Any, model_type: str, layout: PatchLayout) -> Tower | None:
    """Return the tower of a loaded `model`, or None for an architecture that the tests do not compare."""
    if model_type not in SUPPORTED:
        return None
    tower = model.vision_tower
    # Quantized weights are integers; on a GPU the weights keep their own type, and MLX is the faster of the two.
    if mx.metal.is_available() or any(array.dtype != mx.float32 for _, array in tree_flatten(tower.parameters())):
        return MlxTower(tower, layout)
    return Qwen25Tower(tower, layout) if model_type == "qwen2_5_vl" else Qwen3Tower(tower, layout)


class MlxTower:
    """See `Tower`: mlx-vlm's own."""

    threads = False

    def __init__(self, tower: Any, layout: PatchLayout) -> None:
        self._tower = tower
        self._layout = layout

    def tables(self, grid: Grid) -> None:
        """`load_checkpoint` has the tower keep its own."""

    def run(self, patches: Floats, grid: Grid, tables: Tables | None) -> Features:
        """Return the features of one picture."""
        pixel_values = mx.array(self._layout.as_processed(patches))
        dtype = self._tower.patch_embed.proj.weight.dtype
        # Qwen2.5-VL's returns the rows alone.
        features = self._tower(pixel_values.astype(dtype), mx.array([grid.thw]))
        rows, deepstack = features if isinstance(features, tuple) else (features, [])
        return Features(rows=rows, deepstack=tuple(deepstack))


class _CpuTower(ABC):
    """See `Tower`."""

    threads = True

    def __init__(self, tower: Any, layout: PatchLayout) -> None:
        self._tower = tower
        conv = tower.patch_embed.proj
        # The patch is the same at both times: what the convolution does is one product with the sum of its weights.
        folded = np.asarray(conv.weight).sum(axis=1).reshape(conv.weight.shape[0], -1)
        self._embed = Linear(np.ascontiguousarray(folded), np.asarray(conv.bias) if "bias" in conv else None)
        assert layout.repeats == conv.weight.shape[1]
        self._cached_tables = SizedCache(self._tables, lambda tables: tables.nbytes, _TABLES_BYTES)

    def tables(self, grid: Grid) -> Tables:
        """Return what `run` needs for pictures of `grid`."""
        return self._cached_tables(grid)

    def run(self, patches: Floats, grid: Grid, tables: Tables | None) -> Features:
        """Return the features of one picture."""
        assert tables is not None
        return self._run(self._embed(patches), tables)

    @abstractmethod
    def _run(self, x: Floats, tables: Tables) -> Features:
        """Return the features of the embedded patches."""

    @abstractmethod
    def _tables(self, grid: Grid) -> Tables:
        """Build the tables of `grid`."""

    @staticmethod
    def _table(method: Any, grid: Grid) -> Floats:
        """Return what the model's own `method` makes for `grid`, and not have it kept there too."""
        return np.array(unwrap(method)(mx.array([grid.thw])), np.float32)

    def _rotary(self, grid: Grid) -> tuple[Floats, Floats]:
        angles = self._table(self._tower.rot_pos_emb, grid)[:, None, None, :]
        return np.cos(angles), np.sin(angles)


class Qwen3Tower(_CpuTower):
    """Of Qwen3-VL and Qwen3.5: learned positions, full attention, features from layers on the way."""

    def __init__(self, tower: Any, layout: PatchLayout) -> None:
        super().__init__(tower, layout)
        self._blocks = [
            (LayerNorm.of(block.norm1), Attention.of(block.attn), LayerNorm.of(block.norm2), Mlp.of(block.mlp))
            for block in tower.blocks
        ]
        self._merger = _Merger(tower.merger)
        mergers = map(_Merger, tower.deepstack_merger_list)
        self._deepstack = dict(zip(tower.deepstack_visual_indexes, mergers, strict=True))

    def _run(self, x: Floats, tables: Tables) -> Features:
        x += tables.positions
        deepstack = []
        for i, (norm1, attention, norm2, mlp) in enumerate(self._blocks):
            x += attention(norm1(x), tables.cosine, tables.sine, (0, len(x)))
            x += mlp(norm2(x))
            if i in self._deepstack:
                deepstack.append(self._deepstack[i](x))
        return Features(rows=self._merger(x), deepstack=tuple(deepstack))

    def _tables(self, grid: Grid) -> Tables:
        cosine, sine = self._rotary(grid)
        positions = self._table(self._tower.fast_pos_embed_interpolate, grid)
        return Tables(positions=positions, cosine=cosine, sine=sine)


class _Merger:
    """From the patches of a square to a token."""

    def __init__(self, merger: Any) -> None:
        self._norm = LayerNorm.of(merger.norm)
        self._norm_merged = merger.use_postshuffle_norm
        self._width = merger.hidden_size
        self._fc1, self._fc2 = Linear.of(merger.linear_fc1), Linear.of(merger.linear_fc2)

    def __call__(self, x: Floats) -> Floats:
        x = x.reshape(-1, self._width)
        x = self._norm(x) if self._norm_merged else self._norm(x.reshape(-1, len(self._norm.weight)))
        return self._fc2(gelu(self._fc1(x.reshape(-1, self._width))))


class Qwen25Tower(_CpuTower):
    """Of Qwen2.5-VL: attention within windows in most layers."""

    def __init__(self, tower: Any, layout: PatchLayout) -> None:
        super().__init__(tower, layout)
        self._blocks = [
            (RmsNorm.of(block.norm1), Attention.of(block.attn), RmsNorm.of(block.norm2), GatedMlp.of(block.mlp))
            for block in tower.blocks
        ]
        self._square = layout.merge**2
        self._full = frozenset(tower.fullatt_block_indexes)
        self._norm = RmsNorm.of(tower.merger.ln_q)
        self._width = tower.merger.hidden_size
        self._fc1, self._fc2 = Linear.of(tower.merger.mlp[0]), Linear.of(tower.merger.mlp[2])

    def _run(self, x: Floats, tables: Tables) -> Features:
        x = self._ordered(x, tables.order)
        for i, (norm1, attention, norm2, mlp) in enumerate(self._blocks):
            segments = (0, len(x)) if i in self._full else tables.windows
            x += attention(norm1(x), tables.cosine, tables.sine, segments)
            x += mlp(norm2(x))
        merged = self._fc2(gelu(self._fc1(self._norm(x).reshape(-1, self._width))))
        rows = np.empty_like(merged)
        rows[tables.order] = merged
        return Features(rows=rows)

    def _tables(self, grid: Grid) -> Tables:
        index, bounds = self._tower.get_window_index(mx.array([grid.thw]))
        # Windows of a grid that they fill end with empty ones.
        windows = tuple(dict.fromkeys(map(int, bounds.tolist())))
        assert windows[-1] == grid.patches
        order = np.array(index, np.int64)
        cosine, sine = (self._ordered(table, order) for table in self._rotary(grid))
        # Its positions are rotary ones alone.
        positions = np.zeros((1, 1), np.float32)
        return Tables(positions=positions, cosine=cosine, sine=sine, windows=windows, order=order)

    def _ordered(self, x: Floats, order: npt.NDArray[np.int64]) -> Floats:
        """Return the rows of `x` window by window."""
        return x.reshape(-1, self._square, *x.shape[1:])[order].reshape(x.shape)
