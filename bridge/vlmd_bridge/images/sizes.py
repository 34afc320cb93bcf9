"""The size a picture gets: Qwen-VL's "smart resize", so that the model's own processor has nothing left to do."""

from __future__ import annotations

import math

from vlmd_bridge.workers.messages import ImageSpec


def check_spec(spec: ImageSpec) -> None:
    """Refuse a spec that no size can meet.

    Raises:
        ValueError: the spec contradicts itself. It comes from an engine worker, so this is a bug, not a bad picture.
    """
    if spec.factor < 1 or not 0 <= spec.min_pixels <= spec.max_pixels or spec.max_pixels < spec.factor**2:
        raise ValueError(f"no picture can meet {spec}")


def fitted_size(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Return (width, height) in pixels for a picture of `width` by `height`, both at least 1.

    Both sides are multiples of `spec.factor`, the area lies within the pixel bounds and the aspect ratio is kept as
    closely as that allows. With factor 1 a picture is only ever made smaller. Width and height are treated alike, so
    a picture may be turned before or after.

    Source: `smart_resize` of transformers (`models/qwen2_vl/image_processing_pil_qwen2_vl.py`, 5.23.0), which mlx-vlm
    0.7.10 repeats as `_smart_resize_image`; equal to both wherever their result is within `max_pixels`. Beyond it
    (a picture so thin that one row of patches is too long) the long side is cut to what fits, which is also where
    the original ends when it is applied again and again.
    """
    factor, area = spec.factor, width * height
    if factor == 1:
        if area <= spec.max_pixels:
            return width, height
        new_width, new_height = width, height
    else:
        # Python's round, half to even, as the original: 48 / 32 gives 2, 80 / 32 gives 2.
        new_width, new_height = round(width / factor) * factor, round(height / factor) * factor
    if new_width * new_height > spec.max_pixels:
        shrink = math.sqrt(area / spec.max_pixels)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_width * new_height < spec.min_pixels and factor > 1:
        grow = math.sqrt(spec.min_pixels / area)
        new_width = math.ceil(width * grow / factor) * factor
        new_height = math.ceil(height * grow / factor) * factor
    return _within_max(max(factor, new_width), max(factor, new_height), spec)


def _within_max(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Cut the longer side until the area is within `max_pixels`: the arena's range is no larger."""
    if width * height <= spec.max_pixels:
        return width, height
    short = min(width, height)
    # At least one factor: rounding up to bounds that lie close together can leave both sides too long.
    long = max(spec.factor, spec.max_pixels // short // spec.factor * spec.factor)
    return (long, short) if width >= height else (short, long)
