"""The size a picture gets agrees with Qwen-VL's smart resize, so that the model's own processor changes nothing."""

import random

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmd_bridge.images.sizes import check_spec, fitted_size, reduction
from vlmd_bridge.workers.image_messages import MAX_LUMA_BYTES
from vlmd_bridge.workers.messages import ImageSpec

_PUBLISHED = ImageSpec(factor=32, min_pixels=65536, max_pixels=16777216, max_aspect_ratio=200)
_SMALL = ImageSpec(factor=32, min_pixels=65536, max_pixels=262144, max_aspect_ratio=200)
_DEMO = ImageSpec(factor=32, min_pixels=4096, max_pixels=256 * 160, max_aspect_ratio=200)
_QWEN2 = ImageSpec(factor=28, min_pixels=3136, max_pixels=1003520, max_aspect_ratio=200)
_PLAIN = ImageSpec(factor=1, min_pixels=0, max_pixels=10000, max_aspect_ratio=200)


# Taken from `smart_resize` of transformers 5.23.0 (`models/qwen2_vl/image_processing_pil_qwen2_vl.py`); the test
# below compares thousands of sizes where transformers and mlx-vlm are installed.
@pytest.mark.parametrize(
    ("spec", "source", "expected"),
    [
        (_PUBLISHED, (1920, 1080), (1920, 1088)),
        (_PUBLISHED, (1, 1), (256, 256)),
        (_PUBLISHED, (8000, 6000), (4704, 3520)),
        (_SMALL, (1920, 1080), (672, 384)),
        (_SMALL, (1280, 800), (640, 384)),
        (_SMALL, (80, 48), (352, 224)),
        (_SMALL, (1000, 10), (2560, 32)),
        (_SMALL, (3024, 4032), (416, 576)),
        (_DEMO, (1280, 800), (256, 160)),
        (_DEMO, (1920, 1080), (256, 128)),
        (_DEMO, (1, 1), (64, 64)),
        (_DEMO, (48, 48), (64, 64)),
        (_DEMO, (80, 80), (64, 64)),
        (_QWEN2, (1920, 1080), (1316, 728)),
        (_QWEN2, (42, 42), (56, 56)),
        (_QWEN2, (3000, 17), (2996, 28)),
    ],
)
def test_golden_sizes(spec: ImageSpec, source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*source, spec) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [((100, 100), (100, 100)), ((1, 1), (1, 1)), ((200, 100), (141, 70)), ((20000, 100), (1400, 7))],
)
def test_factor_1_only_shrinks(source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*source, _PLAIN) == expected


def test_a_strip_is_cut_to_what_fits() -> None:
    # smart_resize gives (1536, 32) here: more pixels than the arena's range holds.
    assert fitted_size(6000, 100, _DEMO) == (1280, 32)
    assert fitted_size(100, 6000, _DEMO) == (32, 1280)


_sides = st.integers(1, 20000)
_specs = st.builds(
    lambda factor, low, extra: ImageSpec(
        factor=factor,
        min_pixels=low * factor**2,
        max_pixels=(low + 1 + extra) * factor**2 + extra,
        max_aspect_ratio=200,
    ),
    st.sampled_from([1, 14, 28, 32]),
    st.integers(0, 100),
    st.integers(0, 5000),
)


@given(_sides, _sides, _specs)
@settings(max_examples=300, deadline=None)
def test_every_size_fits_the_arena_and_the_patches(width: int, height: int, spec: ImageSpec) -> None:
    new_width, new_height = fitted_size(width, height, spec)
    assert new_width >= spec.factor <= new_height
    assert new_width % spec.factor == new_height % spec.factor == 0
    assert new_width * new_height <= spec.max_pixels
    assert width == height or fitted_size(height, width, spec) == (new_height, new_width)


@given(_sides, _sides, st.sampled_from([_PUBLISHED, _SMALL, _DEMO, _QWEN2, _PLAIN]))
@settings(max_examples=300, deadline=None)
def test_a_fitted_picture_is_not_resized_again(width: int, height: int, spec: ImageSpec) -> None:
    assume(max(width, height) <= spec.max_aspect_ratio * min(width, height))
    once = fitted_size(width, height, spec)
    assert fitted_size(*once, spec) == once
    assert once[0] * once[1] >= min(spec.min_pixels, width * height)


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(factor=0, min_pixels=0, max_pixels=10, max_aspect_ratio=200),
        ImageSpec(factor=32, min_pixels=0, max_pixels=1023, max_aspect_ratio=200),
        ImageSpec(factor=1, min_pixels=11, max_pixels=10, max_aspect_ratio=200),
        ImageSpec(factor=1, min_pixels=0, max_pixels=10, max_aspect_ratio=0.5),
        ImageSpec(factor=1, min_pixels=-1, max_pixels=10, max_aspect_ratio=200),
    ],
)
def test_a_contradictory_spec_is_refused(spec: ImageSpec) -> None:
    with pytest.raises(ValueError, match="no picture can meet"):
        check_spec(spec)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # those of the libraries' imports
def test_it_agrees_with_transformers_and_mlx_vlm() -> None:
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    ported = pytest.importorskip("mlx_vlm.models.qwen3_vl.processing_qwen3_vl")._smart_resize_image
    numbers = random.Random(1)
    compared = beyond = 0
    for _ in range(20000):
        spec = numbers.choice([_PUBLISHED, _SMALL, _DEMO, _QWEN2])
        width, height = (int(2 ** numbers.uniform(0, 13)) for _ in range(2))
        if max(width, height) > 200 * min(width, height):
            continue
        bounds = (spec.factor, spec.min_pixels, spec.max_pixels)
        original = theirs(height, width, *bounds)
        assert ported(height, width, *bounds) == original
        ours = fitted_size(width, height, spec)
        if original[0] * original[1] <= spec.max_pixels and max(original) <= 200 * min(original):
            assert (ours[1], ours[0]) == original
            compared += 1
        else:
            beyond += 1
        assert theirs(ours[1], ours[0], *bounds) == (ours[1], ours[0])
    print(f"{compared} sizes equal, {beyond} strips cut to their bounds")
    assert compared > 10000


_long_sides = st.integers(1, 500_000)
_luma_bounds = st.one_of(st.just(MAX_LUMA_BYTES), st.integers(1, 1000))


@given(_long_sides, _long_sides, _luma_bounds)
@example(1024, 72896, MAX_LUMA_BYTES)  # a ninth of its pixels would fit, but for 15,858 by rounding
@example(121777, 613, MAX_LUMA_BYTES)
@example(1, 500_000, 1)
def test_a_picture_is_averaged_down_until_it_fits_and_no_further(width: int, height: int, max_pixels: int) -> None:
    assume(width * height // max_pixels < 1_000_000)

    def pixels(factor: int) -> int:
        return -(-width // factor) * -(-height // factor)

    factor = reduction(width, height, max_pixels)
    assert pixels(factor) <= max_pixels
    assert factor == 1 or pixels(factor - 1) > max_pixels


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (7, 1000), (1000, 1)])
def test_sizes_round_as_those_of_pillow(size: tuple[int, int]) -> None:
    for max_pixels in (5, 60, 1000):
        factor = reduction(*size, max_pixels)
        reduced = Image.new("L", size).reduce(factor)
        assert reduced.size == tuple(-(-side // factor) for side in size)
