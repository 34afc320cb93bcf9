"""Every kind of picture becomes RGB of the right size and colour, every damaged one a typed error."""

import io
import struct
import warnings
import zlib
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFile, ImageStat

from vlmd_bridge.images.decode import FORMATS, Decoded, decode_picture
from vlmd_bridge.images.errors import PictureError
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES
from vlmd_bridge.workers.messages import ImageSpec

# Pictures up to this size stay as they are, so that colours can be compared exactly.
PLAIN = ImageSpec(factor=1, min_pixels=0, max_pixels=100_000, max_aspect_ratio=200)
MODEL = ImageSpec(factor=32, min_pixels=4096, max_pixels=40960, max_aspect_ratio=200)
MAX_PIXELS = 10_000_000

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes, spec: ImageSpec = PLAIN) -> Decoded:
    return decode_picture(data, spec, name="/a/b.png", max_source_pixels=MAX_PIXELS)


def colours(data: bytes) -> list[tuple[int, ...]]:
    """The pixels of a picture that keeps its size, row by row."""
    pixels = decoded(data).pixels
    return [tuple(pixels[i : i + 3]) for i in range(0, len(pixels), 3)]


def failure(data: bytes, spec: ImageSpec = PLAIN) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decoded(data, spec)
    message = str(caught.value)
    assert "/a/b.png" in message
    assert message.isprintable()
    assert len(message) < 400
    return caught.value


def quarters() -> Image.Image:
    """Four squares of 32 pixels: red, green above blue, white."""
    image = Image.new("RGB", (64, 64))
    for colour, corner in ((RED, (0, 0)), (GREEN, (32, 0)), (BLUE, (0, 32)), (WHITE, (32, 32))):
        image.paste(colour, (*corner, corner[0] + 32, corner[1] + 32))
    return image


def near(pixel: tuple[int, ...], colour: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def corners(picture: Decoded) -> list[tuple[int, ...]]:
    """The middles of the four quarters: left to right, top to bottom."""
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.pixels)
    places = [(x * picture.width // 4, y * picture.height // 4) for y in (1, 3) for x in (1, 3)]
    pixels = (image.getpixel(place) for place in places)
    return [pixel for pixel in pixels if isinstance(pixel, tuple)]


# --- kinds of picture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("spec", [PLAIN, MODEL])
def test_every_format(file_format: str, spec: ImageSpec) -> None:
    picture = decoded(encoded(quarters(), file_format), spec)
    assert (picture.width, picture.height) == (64, 64)
    assert (picture.source_width, picture.source_height) == (64, 64)
    for pixel, colour in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
        assert near(pixel, colour)


def test_pixels_fill_their_size() -> None:
    picture = decoded(encoded(Image.new("RGB", (1280, 800), RED)), MODEL)
    assert (picture.width, picture.height) == (256, 160)
    assert picture.pixels == bytes(RED) * (256 * 160)
    assert (picture.source_width, picture.source_height) == (1280, 800)


def test_one_pixel_grows_to_the_least_size() -> None:
    picture = decoded(encoded(Image.new("RGB", (1, 1), RED)), MODEL)
    assert (picture.width, picture.height) == (64, 64)
    assert picture.pixels == bytes(RED) * 4096


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE, (0, 0, 0), (10, 200, 90)])
def test_cmyk_jpeg(colour: tuple[int, int, int]) -> None:
    # Pillow writes CMYK as Adobe does: inverted, with the Adobe marker.
    data = encoded(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert all(near(pixel, colour) for pixel in colours(data))


def test_16_bit_png() -> None:
    samples = [0, 255, 256, 32768, 65535]
    image = Image.frombytes("I;16", (5, 1), struct.pack("<5H", *samples))
    assert colours(encoded(image)) == [(s >> 8,) * 3 for s in samples]


def test_16_bit_png_resized() -> None:
    image = Image.frombytes("I;16", (320, 320), struct.pack("<H", 40000) * 320 * 320)
    assert set(decoded(encoded(image), MODEL).pixels) == {40000 >> 8}


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff_of_either_byte_order(byte_order: str) -> None:
    mode = "I;16" if byte_order == "<" else "I;16B"
    image = Image.frombytes(mode, (3, 1), struct.pack(byte_order + "3H", 0, 32768, 65535))
    assert colours(encoded(image, "TIFF")) == [(0,) * 3, (128,) * 3, (255,) * 3]


def _gray(mode: str, samples: list[float]) -> bytes:
    return encoded(
        Image.frombytes(
            mode, (len(samples), 1), struct.pack(f"={len(samples)}{'i' if mode == 'I' else 'f'}", *samples)
        ),
        "TIFF",
    )


@pytest.mark.parametrize(
    ("mode", "samples", "expected"),
    [
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 32768, 65535], [0, 127, 255]),
        ("I", [0, 1 << 29, 1 << 30], [0, 127, 255]),
        ("I", [-100, 0, 100], [0, 127, 255]),
        ("F", [0.0, 0.5, 1.0], [0, 127, 255]),
        ("F", [0.0, 100.0, 255.0], [0, 100, 255]),
        ("F", [0.0, 32768.0, 65535.0], [0, 127, 255]),
        ("F", [-1.0, 0.0, 1.0], [0, 127, 255]),
        ("F", [7e8, 7e8, 7e8], [0, 0, 0]),
    ],
)
def test_32_bit_samples(mode: str, samples: list[float], expected: list[int]) -> None:
    for pixel, value in zip(colours(_gray(mode, samples)), expected, strict=True):
        assert near(pixel, (value,) * 3, 1)


@pytest.mark.parametrize("sample", [float("inf"), float("-inf"), float("nan")])
def test_samples_that_are_not_finite(sample: float) -> None:
    data = _gray("F", [sample, sample])
    assert failure(data).code == "image_invalid"


def test_lab() -> None:
    data = encoded(Image.new("LAB", (2, 2), (128, 128, 128)), "TIFF")
    assert all(near(pixel, (119, 119, 119), 3) for pixel in colours(data))


def test_1_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert colours(encoded(image)) == [(0, 0, 0), WHITE]


def test_gray_with_alpha_and_rgba_over_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)]):
        rgba.putpixel((x, 0), pixel)
    assert colours(encoded(rgba)) == [RED, WHITE, (127, 127, 127)]
    la = Image.new("LA", (2, 1), (0, 255))
    la.putpixel((1, 0), (0, 0))
    assert colours(encoded(la)) == [(0, 0, 0), WHITE]


def test_transparent_parts_do_not_bleed_when_resized() -> None:
    # Invisible black beside visible white: an edge that must stay white.
    image = Image.new("RGBA", (640, 640), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 313, 640))
    assert set(decoded(encoded(image), MODEL).pixels) == {255}


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert colours(encoded(image)) == [RED, BLUE]
    assert colours(encoded(image, transparency=0)) == [WHITE, BLUE]
    assert colours(encoded(image, transparency=bytes([255, 0]))) == [RED, WHITE]


@pytest.mark.parametrize(("mode", "key"), [("RGB", RED), ("L", 76)])
def test_a_transparent_colour(mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 0 if mode == "L" else (0, 0, 0))
    assert colours(encoded(image, transparency=key)) == [WHITE, (0, 0, 0)]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(file_format: str) -> None:
    more = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, BLUE)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(Image.new("RGB", (8, 8), RED), file_format, save_all=True, append_images=more, **options)
    assert set(colours(data)) == {RED}


def test_a_camera_file_of_several_jpegs() -> None:
    # MPO: what many phones and cameras call .jpg.
    data = encoded(quarters().resize((1280, 1280)), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    picture = decoded(data, MODEL)
    assert (picture.source_width, picture.width) == (1280, 192)
    for pixel, colour in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
        assert near(pixel, colour)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_of_every_mode(mode: str, progressive: bool) -> None:
    data = encoded(Image.new("RGB", (1999, 1001), (90, 90, 90)).convert(mode), "JPEG", progressive=progressive)
    picture = decoded(data, MODEL)
    assert (picture.source_width, picture.source_height, picture.width, picture.height) == (1999, 1001, 256, 128)
    assert all(abs(value - 90) <= 3 for value in picture.pixels)


# Where the four quarters end up, by EXIF 2.32: the orientation says which side of the stored picture is the top.
_TURNED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
}


@pytest.mark.parametrize("orientation", _TURNED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_turned_by_exif(file_format: str, orientation: int) -> None:
    if file_format not in FORMATS:
        pytest.skip(f"this Pillow has no {file_format}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decoded(encoded(quarters().resize((1280, 640)), file_format, exif=exif), MODEL)
    upright = orientation < 5
    assert (picture.width, picture.height) == ((256, 128) if upright else (128, 256))
    assert (picture.source_width, picture.source_height) == ((1280, 640) if upright else (640, 1280))
    for pixel, colour in zip(corners(picture), _TURNED[orientation], strict=True):
        assert near(pixel, colour)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_unreadable_exif_spoils_no_picture(exif: bytes) -> None:
    assert near(colours(encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=exif))[0], RED)


def test_a_draft_shows_the_same_picture() -> None:
    image = Image.effect_mandelbrot((2001, 1501), (-2, -1, 1, 1), 50).convert("RGB")
    picture = decoded(encoded(image, "JPEG", quality=95), MODEL)
    size = (picture.width, picture.height)
    expected = image.resize(size, Image.Resampling.BICUBIC)
    difference = ImageChops.difference(Image.frombytes("RGB", size, picture.pixels), expected)
    assert max(ImageStat.Stat(difference).mean) < 4


def test_the_luminance_of_a_long_thin_picture_fits() -> None:
    data = encoded(Image.new("L", (407, 81398)))  # a quarter of its pixels would fit, but its width is odd
    luma = decode_picture(data, MODEL, name="x", max_source_pixels=40_000_000, with_luma=True).luma
    assert luma is not None
    width, height, samples = luma
    assert (width, height) == (136, 27133)
    assert len(samples) == width * height <= MAX_LUMA_BYTES


# --- pictures that cannot be used -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (201, 1)])
def test_beyond_the_aspect_ratio(size: tuple[int, int]) -> None:
    error = failure(encoded(Image.new("RGB", size)), MODEL)
    assert error.code == "image_aspect_ratio"
    assert f"{size[0]}x{size[1]}; at most 200:1" in str(error)


def test_at_the_aspect_ratio() -> None:
    picture = decoded(encoded(Image.new("RGB", (200, 1))), MODEL)
    assert (picture.width, picture.height) == (928, 32)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(10000)))


def _vp8x(width: int, height: int) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        png_header(60000, 60000),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(10_000_001, 1),
        _vp8x(16000, 16000),
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;",
    ],
    ids=["png", "png-largest", "png-one-more", "webp", "gif"],
)
def test_a_decompression_bomb_is_refused_by_its_header(data: bytes) -> None:
    assert failure(data).code == "image_too_large"


def test_the_pixel_cap_is_exact() -> None:
    data = encoded(Image.new("RGB", (11, 11)))
    decode_picture(data, PLAIN, name="x", max_source_pixels=121)
    with pytest.raises(PictureError, match=r"Too many pixels \(.*at most 120\): x"):
        decode_picture(data, PLAIN, name="x", max_source_pixels=120)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(file_format: str, part: float) -> None:
    image = Image.effect_noise((200, 200), 100).convert("RGB")
    data = encoded(image, file_format)
    assert failure(data[: int(len(data) * part)]).code == "image_invalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"This is not a picture at all.\n" * 10,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"<svg/>",
        b"%PDF-1.7\n",
    ],
)
def test_not_a_picture(data: bytes) -> None:
    error = failure(data)
    assert error.code == "image_invalid"
    assert "PNG" in str(error)


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "PCX", "EPS", "PDF"])
def test_formats_that_are_not_allowed(file_format: str) -> None:
    assert failure(encoded(Image.new("RGB", (16, 16)), file_format)).code == "image_invalid"


# --- Pillow's globals -----------------------------------------------------------------------------------------


def test_pillow_is_left_as_it_was_and_never_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    data = encoded(Image.effect_noise((100, 100), 100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # 10,000 pixels lie between Pillow's cap and twice its cap, where it warns.
        decode_picture(data, PLAIN, name="x", max_source_pixels=10_001)
        with pytest.raises(PictureError):
            decode_picture(data[:-500], PLAIN, name="x", max_source_pixels=10_001)
    assert caught == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 12345
