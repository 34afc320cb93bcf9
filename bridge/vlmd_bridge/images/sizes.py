"""The size a picture gets: Qwen-VL's "smart resize", so that the model's own processor has nothing left to do."""

from __future__ import annotations

import math

from vlmd_bridge.workers.messages import ImageSpec


def check_spec(spec: ImageSpec) -> None:
    """Refuse a spec that no size can meet.

    Raises:
        ValueError: the spec contradicts itself. It comes from an engine worker, so this is a bug, not a bad picture.
    """
    bounds_hold = 0 <= spec.min_pixels <= spec.max_pixels >= spec.factor**2
    if not (spec.factor >= 1 and bounds_hold and spec.max_aspect_ratio >= 1):
        raise ValueError(f"no picture can meet {spec}")


def fitted_size(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Return (width, height) in pixels for a picture of `width` by `height`, both at least 1.

    Both sides are multiples of `spec.factor`, the area lies within the pixel bounds and the aspect ratio is kept as
    closely as that allows. With factor 1 a picture is only ever made smaller. Width and height are treated alike, so
    a picture may be turned before or after (a square may come out lying where the bounds leave no square).

    Source: `smart_resize` of transformers (`models/qwen2_vl/image_processing_pil_qwen2_vl.py`, 5.23.0), which mlx-vlm
    0.7.10 repeats as `_smart_resize_image`; equal to both wherever their result is one that they would take as it
    is. For very thin pictures it is not: one row of patches can exceed `max_pixels`, and rounding can carry the
    result's ratio past the limit (28x5628 from 29x5615), at which they raise. Here the long side is cut to what fits.
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
    return _cut(max(factor, new_width), max(factor, new_height), spec)


def reduction(width: int, height: int, max_pixels: int) -> int:
    """Return the least factor by which a picture is averaged down to no more than `max_pixels`, which is at least 1.

    As Pillow's `Image.reduce` does it: both sides divided and rounded up, which in a long, thin picture is a lot.
    """
    factor = max(1, math.isqrt(width * height // max_pixels))
    while -(-width // factor) * -(-height // factor) > max_pixels:
        factor += 1
    return factor


def _cut(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Cut the longer side until the area is within `max_pixels` (the arena's range is no larger) and the ratio too."""
    short, long = sorted((width, height))
    fitting = min(spec.max_pixels // short, math.floor(short * spec.max_aspect_ratio))
    if long <= fitting:
        return width, height
    # At least one factor: rounding up to bounds that lie close together can leave both sides too long.
    long = max(spec.factor, fitting // spec.factor * spec.factor)
    return (long, short) if width >= height else (short, long)
