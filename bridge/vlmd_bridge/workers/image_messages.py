"""Messages between the daemon and its image processes: pictures to open, and pictures to compare."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from vlmd_bridge.workers.messages import Close, ImageSpec, Message


class Luma(msgspec.Struct, frozen=True, kw_only=True):
    """Luminance, a byte a pixel, rows first, at `offset` of the arena: what pictures are compared by."""

    offset: int
    width: int
    height: int


# A screen of 3840 by 2160; what is larger is averaged down until it fits.
MAX_LUMA_BYTES = 3840 * 2160


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """An upright bar of one colour, in pixels of a `Luma`: what a text cursor looks like."""

    x: int
    y: int
    width: int
    height: int


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that others are compared with.

    They show the same where they differ by no more than what a codec, a mouse pointer and a text cursor of a known size
    explain, and by `threshold`, a fraction of the pixels.
    """

    luma: Luma
    threshold: float
    cursors: tuple[Bar, ...] = ()


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a picture shows the same as its reference. `bar` is an upright bar that is the only difference."""

    same: bool
    bar: Bar | None = None


class ConfigureImages(Message, frozen=True, kw_only=True, tag="configure_images"):
    """First message to an image process."""

    max_source_pixels: int
    max_source_bytes: int
    memory_limit_bytes: int


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Open, hash, decode and resize the picture at `path` into the arena at `offset` (`spec.max_bytes` are free).

    With `luma_offset` its luminance is written there too (`MAX_LUMA_BYTES` are free), and compared with `reference`.
    """

    seq: int
    path: str
    offset: int
    spec: ImageSpec
    luma_offset: int | None = None
    reference: Reference | None = None


class Compare(Message, frozen=True, kw_only=True, tag="compare"):
    """Compare pictures with a reference, one after the other, up to the first that does not show the same."""

    seq: int
    reference: Reference
    others: tuple[Luma, ...]


class ImagesReady(Message, frozen=True, kw_only=True, tag="images_ready"):
    """An image process takes work."""

    pid: int
    versions: dict[str, str]


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """The picture of `seq` stands in the arena."""

    seq: int
    width: int
    height: int
    source_width: int
    source_height: int
    digest: bytes
    prepare_s: float
    luma: Luma | None = None
    likeness: Likeness | None = None


class Compared(Message, frozen=True, kw_only=True, tag="compared"):
    """The answer to `Compare`: at least one."""

    seq: int
    likenesses: tuple[Likeness, ...]


class PictureFailed(Message, frozen=True, kw_only=True, tag="picture_failed"):
    """The picture of `seq` cannot be used; `code` is one of the frame codes of the protocol."""

    seq: int
    code: str
    error: str


ToImages: TypeAlias = ConfigureImages | Prepare | Compare | Close
FromImages: TypeAlias = ImagesReady | Prepared | Compared | PictureFailed
