"""A vision model's folder in memory: the model, its processor, and what the daemon must know of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
from mlx.utils import tree_flatten

from vlmd_bridge.engine.backend import LoadError
from vlmd_bridge.engine.pictures.sized_cache import SizedCache
from vlmd_bridge.engine.weights import LOAD_ERRORS, fit_to_device, weight_bytes, weight_dtype
from vlmd_bridge.workers.messages import ImageSpec

# For processors that bring every picture to their own fixed size: what a 4K screen has, so that none is enlarged.
_PLAIN_SPEC = ImageSpec(factor=1, min_pixels=1, max_pixels=3840 * 2160, max_aspect_ratio=200.0)

# Qwen-VL's smart resize refuses what is longer than this.
_MAX_ASPECT_RATIO = 200.0

# Of each of the two tables: the grids of a stream of frames are few, but a large picture's may be 32 MB.
_TABLES_BYTES = 32 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A loaded model. `dtype` is that of the larger part of its weights, or the packed width: ``4-bit``."""

    model: Any
    processor: Any
    tokenizer: Any
    model_type: str
    eos_token_ids: list[int]
    image_token_ids: frozenset[int]
    context_tokens: int
    weight_bytes: int
    dtype: str
    image_spec: ImageSpec


def load_checkpoint(path: str, *, vision_tower: bool = True) -> Checkpoint:
    """Load the folder at `path`. Nothing is fetched. `vision_tower`: see `Switches`.

    Raises:
        LoadError: mlx-vlm refuses it. What can be told without loading, `vlmd_bridge.models.probe` has told already.
    """
    folder = Path(path)
    if not folder.is_dir():  # mlx_vlm.load would take it for the name of a repository
        raise LoadError("model_not_found", f"{path} is not a folder")
    try:
        model, processor = mlx_vlm.load(str(folder), lazy=True)
    except LOAD_ERRORS as error:
        raise LoadError("model_load_failed", f"mlx-vlm cannot load {path}: {type(error).__name__}: {error}") from error
    fit_to_device(model)
    if vision_tower:
        _cache_position_tables(getattr(model, "vision_tower", None))
    tokenizer = processor.tokenizer if hasattr(processor, "tokenizer") else processor
    text = getattr(model.config, "text_config", model.config)
    return Checkpoint(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        model_type=str(model.config.model_type),
        eos_token_ids=list(tokenizer.stopping_criteria.eos_token_ids),
        image_token_ids=frozenset(
            token
            for name in ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id")
            if isinstance(token := getattr(model.config, name, None), int)
        ),
        context_tokens=int(getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length),
        weight_bytes=weight_bytes(model),
        dtype=weight_dtype(model),
        image_spec=image_spec(getattr(processor, "image_processor", None)),
    )


def image_spec(image_processor: Any) -> ImageSpec:
    """Return what `image_processor` wants its pictures to be, so that it need not resize them itself."""
    patch, merge = (getattr(image_processor, name, None) for name in ("patch_size", "merge_size"))
    if not isinstance(patch, int) or not isinstance(merge, int):
        return _PLAIN_SPEC
    size = getattr(image_processor, "size", None) or {}
    min_pixels, max_pixels = (
        getattr(image_processor, name, None) or size.get(edge)
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    )
    if not isinstance(min_pixels, int) or not isinstance(max_pixels, int):
        return _PLAIN_SPEC
    return ImageSpec(
        factor=patch * merge, min_pixels=min_pixels, max_pixels=max_pixels, max_aspect_ratio=_MAX_ASPECT_RATIO
    )


def _cache_position_tables(tower: Any) -> None:
    """Keep the position tables of each grid of patches, which the tower builds as Python lists on every call.

    They depend on the grid alone; on the demo model they cost five times the tower's arithmetic.
    """
    for name in ("fast_pos_embed_interpolate", "rot_pos_emb"):
        method = getattr(tower, name, None)
        if callable(method):
            setattr(tower, name, _cached_by_grid(method))


def _cached_by_grid(method: Any) -> Any:
    def made(grid: tuple[tuple[int, ...], ...]) -> Any:
        table = method(mx.array(grid))
        mx.eval(table)
        return table

    # Some towers' tables are several arrays.
    tables = SizedCache(made, lambda table: sum(array.nbytes for _, array in tree_flatten(table)), _TABLES_BYTES)

    # Who keeps what is made of a table asks the method that this wraps.
    @functools.wraps(method)
    def cached(grid_thw: mx.array) -> Any:
        grids: Any = grid_thw.tolist()
        return tables(tuple(map(tuple, grids)))

    return cached
