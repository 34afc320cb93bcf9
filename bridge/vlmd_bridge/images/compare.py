"""Whether two pictures of a screen show the same: docs/decisions/0017.

What differs by more than noise is grouped into spots. A spot is explained where it is a text cursor that blinks, and a
pair of them where it is a mouse pointer that has moved; whatever is left is a change.
"""

from __future__ import annotations

import mmap
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageChops

from vlmd_bridge.images.spots import Grey, Mask, Spot, find_spots
from vlmd_bridge.workers.image_messages import Bar, Compare, Compared, Likeness, Luma, Reference

Signed: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int16]]

# Steps of luminance that a decoder's rounding makes of the same pixels.
_ROUNDING: Final = 3

# Differences up to this are a codec's where many pixels have them, and a picture's own where hardly any has.
_FAINT: Final = 8
_NOISY_SHARE: Final = 0.002

# Noise is taken out by the mean of 3 x 3 signed differences: 2 steps of it leave 3.4 among a million pixels, a lossy
# codec beside text 8; one stroke of a character in faint grey on grey leaves 15 and more.
_SMOOTHED: Final = 10

# A faint change of a large place, as of a row that is marked: what noise leaves of the mean of so many squared is 1.
_COARSE: Final = 8
_COARSE_STEPS: Final = 3

# What differs in more places than this is no matter of cursor and pointer; pixels.
_MAX_EXPLAINED: Final = 6000
_MAX_SPOTS: Final = 8

# A text cursor: pixels. Thin, several times as high, filled.
_BAR_WIDTH: Final = 4
_BAR_HEIGHT: Final = (8, 96)
_BAR_RATIO: Final = 4
_BAR_FILL: Final = 0.9

# A mouse pointer: pixels. Larger than a character of most texts, so that a moved letter is none.
_POINTER_SIDE: Final = (8, 48)
_POINTER_HEIGHT: Final = 14
_POINTER_AREA: Final = 40

# What of a spot is taken for the pointer where there is noise around it; steps.
_POINTER_CLEAR: Final = 20

# How alike the pointer is here and there, in steps: noise, and a codec that blurs its edge.
_POINTER_STEPS: Final = 10.0
_POINTER_FAR: Final = 40
_POINTER_FAR_SHARE: Final = 0.04

# Its outline may be lost where the ground has its colour; pixels, the likely first.
_POINTER_SHIFTS: Final = sorted(
    ((down, right) for down in range(-3, 4) for right in range(-3, 4)), key=lambda by: abs(by[0]) + abs(by[1])
)


def compare_all(request: Compare, arena: mmap.mmap) -> Compared:
    """Compare the pictures of `request` up to the first that does not show the same as the reference."""
    found: list[Likeness] = []
    for other in request.others:
        found.append(compare_luma(request.reference, other, arena))
        if not found[-1].same:
            break
    return Compared(seq=request.seq, likenesses=tuple(found))


def compare_luma(reference: Reference, other: Luma, arena: mmap.mmap) -> Likeness:
    """Return whether a picture shows the same as the reference."""
    one = reference.luma
    if (one.width, one.height) != (other.width, other.height):
        return Likeness(same=False)
    return compare(_image(arena, one), _image(arena, other), reference.threshold, reference.cursors)


def compare(one: Image.Image, other: Image.Image, threshold: float, cursors: tuple[Bar, ...] = ()) -> Likeness:
    """Compare two pictures of mode ``L`` and of one size.

    Args:
        one: the picture that was described.
        other: the one in question.
        threshold: fraction of the pixels that may differ beyond what is explained.
        cursors: bars of the size of the text cursors that are known.
    """
    steps = ImageChops.difference(one, other)
    histogram = steps.histogram()
    if not any(histogram[_ROUNDING + 1 :]):
        return Likeness(same=True)
    pixels = one.width * one.height
    noisy = sum(histogram[1 : _FAINT + 1]) > pixels * _NOISY_SHARE
    # Of lossless pictures only the part that differs is looked at.
    box = None if noisy else steps.point(lambda step: 255 * (step > _ROUNDING)).getbbox()
    left, top, right, bottom = box or (0, 0, one.width, one.height)
    # With as much around it as a pointer's size, which may not differ from its ground everywhere.
    left, top = max(0, left - _POINTER_SIDE[1]), max(0, top - _POINTER_SIDE[1])
    right, bottom = min(one.width, right + _POINTER_SIDE[1]), min(one.height, bottom + _POINTER_SIDE[1])
    parts = one.crop((left, top, right, bottom)), other.crop((left, top, right, bottom))
    mask = _smoothed(*parts) if noisy else np.asarray(steps.crop((left, top, right, bottom))) > _ROUNDING
    changed = 0 if mask is None else int(np.count_nonzero(mask))
    if mask is None or changed <= threshold * pixels:
        return Likeness(same=True)
    spots = find_spots(mask, _MAX_SPOTS) if changed <= _MAX_EXPLAINED else None
    if spots is None:
        return Likeness(same=False)
    before, after = (np.asarray(part) for part in parts)
    clear = _POINTER_CLEAR if noisy else _ROUNDING
    return _explained(spots, before, after, clear, (left, top), threshold * pixels, cursors)


def _explained(
    spots: list[Spot],
    before: Grey,
    after: Grey,
    clear: int,
    origin: tuple[int, int],
    allowed: float,
    cursors: tuple[Bar, ...],
) -> Likeness:
    bars = [_bar(spot, before, after, origin) for spot in spots]
    if len(spots) == 1 and bars[0] is not None:
        return Likeness(same=_is_known(bars[0], cursors), bar=bars[0])
    # One blinks; two at once are one that has moved, with which a space may have come.
    blinking = [spot for spot, bar in zip(spots, bars, strict=True) if bar is not None and _is_known(bar, cursors)]
    rest = [spot for spot in spots if len(blinking) != 1 or spot is not blinking[0]]
    if len(rest) == 2 and _is_moved_pointer(rest[0], rest[1], before, after, clear):
        rest = []
    return Likeness(same=sum(spot.area for spot in rest) <= allowed)


def _bar(spot: Spot, before: Grey, after: Grey, origin: tuple[int, int]) -> Bar | None:
    """Return the upright bar of one colour that a spot is, in the picture's own coordinates."""
    bar = _strong(spot, before, after, share=1 / 3)
    if bar.width > _BAR_WIDTH or not _BAR_HEIGHT[0] <= bar.height <= _BAR_HEIGHT[1]:
        return None
    if bar.height < bar.width * _BAR_RATIO or bar.area < _BAR_FILL * bar.width * bar.height:
        return None
    return Bar(x=origin[0] + bar.left, y=origin[1] + bar.top, width=bar.width, height=bar.height)


def _strong(spot: Spot, before: Grey, after: Grey, *, share: float) -> Spot:
    """Return the pixels of a spot that differ by a share of the most that any does; smoothing has added others."""
    steps = spot.steps(before, after)
    return spot.keep(steps >= steps.max() * share)


def _is_known(bar: Bar, cursors: tuple[Bar, ...]) -> bool:
    return any(abs(bar.width - known.width) <= 1 and abs(bar.height - known.height) <= 1 for known in cursors)


def _is_moved_pointer(one: Spot, other: Spot, before: Grey, after: Grey, clear: int) -> bool:
    """Whether what stood at one of two spots before stands at the other now.

    All of the pointer need not differ from its ground, here or there; where it does in one place, both show it.
    """
    one, other = (spot.keep(spot.steps(before, after) > clear) for spot in (one, other))
    for spot in (one, other):
        if spot.area < _POINTER_AREA or spot.height < _POINTER_HEIGHT:
            return False
        if min(spot.width, spot.height) < _POINTER_SIDE[0] or max(spot.width, spot.height) > _POINTER_SIDE[1]:
            return False
    down, right = other.top - one.top, other.left - one.left
    return any(
        _shows_the_same(one, other, before, after, down + by[0], right + by[1])
        or _shows_the_same(other, one, before, after, by[0] - down, by[1] - right)
        for by in _POINTER_SHIFTS
    )


def _shows_the_same(old: Spot, new: Spot, before: Grey, after: Grey, down: int, right: int) -> bool:
    """Whether the pixels of both spots are the same before, and after a move of the old one by so much."""
    rows = np.concatenate([old.rows, new.rows - down])
    columns = np.concatenate([old.columns, new.columns - right])
    height, width = before.shape
    for places, size in ((rows, height), (columns, width), (rows + down, height), (columns + right, width)):
        if places.min() < 0 or places.max() >= size:
            return False
    apart = np.abs(before[rows, columns].astype(np.int16) - after[rows + down, columns + right])
    return float(apart.mean()) <= _POINTER_STEPS and float((apart > _POINTER_FAR).mean()) <= _POINTER_FAR_SHARE


def _smoothed(one: Image.Image, other: Image.Image) -> Mask | None:
    """Return where the mean of signed differences is larger than noise leaves it, in the small or in the large.

    None where it is nowhere.
    """
    signed = np.pad(np.asarray(one).astype(np.int16) - np.asarray(other), 1)
    rows = signed[:-2] + signed[1:-1] + signed[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    fine = _beyond(sums, 9 * _SMOOTHED)
    means = [np.asarray(image.reduce(_COARSE)).astype(np.int16) for image in (one, other)]
    coarse = _beyond(means[0] - means[1], _COARSE_STEPS)
    if coarse is not None:
        coarse = coarse.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)[: one.height, : one.width]
    if fine is None or coarse is None:
        return coarse if fine is None else fine
    return fine | coarse


def _beyond(signed: Signed, steps: int) -> Mask | None:
    """Return where a signed difference is more than `steps`, None where it is nowhere."""
    if signed.min() >= -steps and signed.max() <= steps:
        return None
    return (signed > steps) | (signed < -steps)


def _image(arena: mmap.mmap, luma: Luma) -> Image.Image:
    size = luma.width * luma.height
    samples = np.frombuffer(arena, dtype=np.uint8, count=size, offset=luma.offset)
    return Image.frombuffer("L", (luma.width, luma.height), samples, "raw", "L", 0, 1)
