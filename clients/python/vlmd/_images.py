"""What a caller may pass as images."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

from vlmd._runtime import Runtime
from vlmd_protocol.messages import ImageRef

# A request's frames are taken no longer than this: of a slow source it gets fewer.
PULL_BUDGET_S = 0.25

# A source that needs longer than this even so is live, a camera or a screen: results are not to wait for its frames.
LIVE_S = 1.0


@dataclass(frozen=True, slots=True)
class Image:
    """One frame to describe.

    Attributes:
        path: of the picture; a relative one is resolved against the folder the caller is in.
        timestamp: seconds into the recording, for the prompt and the result.
        index: the caller's own number of the frame, echoed; by default its position.
        id: the caller's own name of the frame, echoed.
    """

    path: str | os.PathLike[str]
    timestamp: int | float | None = None
    index: int | None = None
    id: int | str | None = None


ImageLike: TypeAlias = str | os.PathLike[str] | Image | tuple[str | os.PathLike[str], int | float | None]


class Source:
    """Takes frames from the caller's iterable, no earlier than asked."""

    def __init__(self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], runtime: Runtime) -> None:
        if isinstance(images, str | bytes | os.PathLike | Image):
            raise TypeError(f"`images` is one image; pass a list: [{images!r}]")
        self.total = _length(images)
        self._runtime = runtime
        self._folder = os.getcwd()  # noqa: PTH109 - joined as text; pathlib would drop a leading "./"
        self._async: AsyncIterator[ImageLike] | None = None
        self._sync: Iterator[ImageLike] = iter(())
        if isinstance(images, AsyncIterable):
            self._async = aiter(images)
        else:
            self._sync = iter(images)
        self._peeked: ImageRef | None = None
        self._taken = 0
        self.ended = False
        self.live = False

    async def take(self, limit: int, multiple: int) -> list[ImageRef]:
        """Return up to `limit` frames: fewer at the end, and of a slow source, then in a multiple of `multiple`."""
        frames: list[ImageRef] = []
        started_s = self._runtime.now_s()
        while len(frames) < limit and (frame := await self._next()) is not None:
            frames.append(frame)
            if len(frames) % multiple == 0 and self._runtime.now_s() - started_s > PULL_BUDGET_S:
                break
        self.live = self._runtime.now_s() - started_s > LIVE_S
        return frames

    async def at_end(self) -> bool:
        """Whether there is no further frame; this asks the iterable for one."""
        if self._peeked is None:
            self._peeked = await self._next()
        return self._peeked is None

    async def _next(self) -> ImageRef | None:
        if self._peeked is not None:
            frame, self._peeked = self._peeked, None
            return frame
        if self.ended:
            return None
        try:
            item = next(self._sync) if self._async is None else await anext(self._async)
        except (StopIteration, StopAsyncIteration):
            self.ended = True
            return None
        frame = self._refer(item)
        self._taken += 1
        return frame

    def _refer(self, item: ImageLike) -> ImageRef:
        image = as_image(item)
        return ImageRef(
            image_path=absolute_path(image, self._folder),
            timestamp=image.timestamp,
            index=self._taken if image.index is None else image.index,
            id=image.id,
        )


def as_image(item: ImageLike) -> Image:
    """Return what a caller passed as an image."""
    return item if isinstance(item, Image) else Image(*item) if isinstance(item, tuple) else Image(item)


def absolute_path(image: Image, folder: str) -> str:
    """Return the path of `image`, a relative one resolved against `folder`.

    Raises:
        TypeError: its path is none.
    """
    path = os.fspath(cast("object", image.path))  # type: ignore[call-overload]
    if not isinstance(path, str):
        raise TypeError(f"An image's path is a str or PathLike[str], not {type(path).__name__}.")
    return os.path.join(folder, path)  # noqa: PTH118 - text in, text out


def _length(images: object) -> int | None:
    try:
        return len(images)  # type: ignore[arg-type]
    except TypeError:
        return None
