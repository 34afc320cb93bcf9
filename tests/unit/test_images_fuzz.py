"""Random and mutated bytes never escape as anything but a typed error."""

import functools
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmd_bridge.images.decode import FORMATS, decode_picture
from vlmd_bridge.images.errors import PictureError
from vlmd_bridge.workers.messages import ImageSpec

_SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)

_SIGNATURES = (
    b"",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\xff\0\0\0WEBPVP8 ",
    b"\0\0\0\x1cftypavif",
)


def _decode(data: bytes) -> bool:
    """Whether `data` is a picture; anything but a PictureError fails the test."""
    try:
        picture = decode_picture(data, _SPEC, name="x", max_source_pixels=1_000_000)
    except PictureError as error:
        assert error.code in ("image_invalid", "image_too_large", "image_aspect_ratio")
        assert str(error).isprintable()
        return False
    assert len(picture.pixels) == picture.width * picture.height * 3 <= _SPEC.max_bytes
    return True


@given(st.sampled_from(_SIGNATURES), st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_random_bytes(signature: bytes, rest: bytes) -> None:
    _decode(signature + rest)


@functools.cache
def _sample(file_format: str) -> bytes:
    image = Image.effect_noise((24, 20), 90).convert("RGB")
    image.putpixel((3, 3), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


_mutations = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "drop", "insert"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("file_format", FORMATS)
@given(mutations=_mutations)
@settings(max_examples=150, deadline=None)
def test_mutated_pictures(file_format: str, mutations: list[tuple[float, str, bytes]]) -> None:
    data = bytearray(_sample(file_format))
    for where, how, what in mutations:
        # Squared: half of the changes fall into the first quarter, where the headers are.
        place = int(where * where * len(data))
        match how:
            case "set":
                data[place : place + len(what)] = what
            case "cut":
                del data[place + 1 :]
            case "drop":
                del data[place : place + len(what)]
            case _:
                data[place:place] = what
    _decode(bytes(data))


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_samples_themselves_are_pictures(file_format: str) -> None:
    assert _decode(_sample(file_format))
