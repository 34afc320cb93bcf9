"""From a file's bytes to RGB pixels of the size a model wants, with Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# The plugins register themselves; importing them here spares `Image.open` from importing every plugin there is.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from vlmd_bridge.images.errors import PictureError, shown
from vlmd_bridge.images.pixels import to_8_bit
from vlmd_bridge.images.sizes import fitted_size, reduction
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES
from vlmd_bridge.workers.messages import ImageSpec

# What cameras, browsers and screenshots write. Every other decoder in Pillow is attack surface for no user.
_PLUGINS = (
    PngImagePlugin.PngImageFile,
    JpegImagePlugin.JpegImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    AvifImagePlugin.AvifImageFile,
)
# A build of Pillow may lack the library behind a plugin, which then is not registered.
FORMATS = tuple(plugin.format for plugin in _PLUGINS if plugin.format in Image.OPEN)

# What Pillow's decoders raise for bytes that are not what they seem (found by feeding them mutated files).
# DecompressionBombError and MemoryError are handled apart.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# Averaging down to twice the target before the bicubic step: 3.0 ms instead of 6.3 for 1280x800 to 256x160.
_REDUCING_GAP = 2.0

# A JPEG may be decoded at a half, a quarter or an eighth of its size while that leaves this many times the target for
# the bicubic step: 1920x1080 to 672x384 takes 11 ms rather than 23.
_DRAFT_GAP = 1.4

# EXIF orientation to what turns the picture upright (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_QUARTER_TURN = 5  # from here on width and height change places


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upright picture: `pixels` is RGB8, rows first, ``width * height * 3`` bytes. Sizes are in pixels.

    `drafted` says that a JPEG was decoded at a fraction of its size, whose pixels differ a little from the whole one's.
    `luma` is the width, the height and the luminance of the picture as it was stored, where that was asked for.
    """

    pixels: bytes
    width: int
    height: int
    source_width: int
    source_height: int
    drafted: bool = False
    luma: tuple[int, int, bytes] | None = None


def decode_picture(
    data: bytes, spec: ImageSpec, *, name: str, max_source_pixels: int, with_luma: bool = False
) -> Decoded:
    """Decode the first frame of `data`, turn it upright and bring it to the size that `spec` asks for.

    `name` is what messages call it. Not for several threads at once: Pillow's pixel cap is a global.

    Raises:
        PictureError: ``image_invalid``, ``image_too_large`` or ``image_aspect_ratio``.
        MemoryError: there is not enough memory for the picture.
    """
    try:
        with _pillow_cap(max_source_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, spec, name, max_source_pixels)
            return _prepared(image, spec, with_luma=with_luma)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name, max_source_pixels) from error
    except UnidentifiedImageError as error:
        message = f"Not a picture, or damaged at its start: {name}. Formats: {', '.join(FORMATS)}."
        raise PictureError("image_invalid", message) from error
    except _DECODER_ERRORS as error:
        reason = shown(str(error)) or type(error).__name__
        raise PictureError("image_invalid", f"Damaged picture: {name}: {reason}. Write the file again.") from error


@contextmanager
def _pillow_cap(max_pixels: int) -> Iterator[None]:
    """Make Pillow's own cap ours and its warnings silent.

    Pillow warns above its cap and raises above twice its cap, so it is given half of ours. That it raises at all
    matters for WebP, whose decoder takes memory for whole canvases when the file is merely opened.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES), False
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # an odd cap is exact in `_check_size` only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_size(width: int, height: int, spec: ImageSpec, name: str, max_pixels: int) -> None:
    """Judge the header's size, before anything is decoded."""
    if width < 1 or height < 1:
        raise PictureError("image_invalid", f"A picture without pixels ({width}x{height}): {name}")
    if width * height > max_pixels:
        raise _too_many_pixels(name, max_pixels, f"{width}x{height}; ")
    if max(width, height) > min(width, height) * spec.max_aspect_ratio:
        message = f"Too long and thin ({width}x{height}; at most {spec.max_aspect_ratio:g}:1): {name}. Cut it in parts."
        raise PictureError("image_aspect_ratio", message)


def _prepared(image: ImageFile.ImageFile, spec: ImageSpec, *, with_luma: bool) -> Decoded:
    source = image.size
    # A character's strokes are one or two pixels wide: what is compared keeps its size.
    draft = None if with_luma else _draft(image, fitted_size(*source, spec))
    image.load()
    orientation = _orientation(image)
    flat = to_8_bit(image)
    if draft is None:
        source = image.size  # Pillow itself turns TIFF upright while loading
    luma = _luma(flat) if with_luma else None
    target = fitted_size(*source, spec)
    if flat.size != target:
        flat = flat.resize(target, Image.Resampling.BICUBIC, box=draft, reducing_gap=_REDUCING_GAP)
    if orientation in _UPRIGHT:
        # After the resize, when there is least to turn.
        flat = flat.transpose(_UPRIGHT[orientation])
        if orientation >= _FIRST_QUARTER_TURN:
            source = (source[1], source[0])
    pixels = flat.convert("RGB").tobytes()
    return Decoded(
        pixels=pixels,
        width=flat.width,
        height=flat.height,
        source_width=source[0],
        source_height=source[1],
        drafted=draft is not None,
        luma=luma,
    )


def _luma(image: Image.Image) -> tuple[int, int, bytes]:
    grey = image.convert("L")
    factor = reduction(grey.width, grey.height, MAX_LUMA_BYTES)
    if factor > 1:
        grey = grey.reduce(factor)
    return grey.width, grey.height, grey.tobytes()


def _draft(image: ImageFile.ImageFile, target: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Have a JPEG decoded smaller where that is enough; return which part of the result is the picture."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    drafted = image.draft(None, (int(target[0] * _DRAFT_GAP), int(target[1] * _DRAFT_GAP)))
    return drafted[1] if drafted else None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or it cannot be read: that alone spoils no picture."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _too_many_pixels(name: str, max_pixels: int, size: str = "") -> PictureError:
    return PictureError("image_too_large", f"Too many pixels ({size}at most {max_pixels}): {name}. Make it smaller.")
