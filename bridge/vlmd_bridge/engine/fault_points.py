"""The fault points of an engine worker, whatever its backend. See `vlmd_bridge.faults`."""

from __future__ import annotations

import mmap

from vlmd_bridge import faults
from vlmd_bridge.workers.blocking_link import BlockingLink
from vlmd_bridge.workers.messages import Picture, Start, Text, ToEngine


class FaultPoints:
    """Each method is a point; it costs a look at None while nothing is armed there."""

    def __init__(self, arena: mmap.mmap, link: BlockingLink[ToEngine]) -> None:
        def point(name: str) -> faults.Point | None:
            return faults.point("worker", name, link.socket)

        self._arena = arena
        self._at_start = point("start")
        self._at_ready = point("ready")
        self._at_message = point("message")
        self._at_text = point("text")
        self._at_pixels = point("pixels")
        self._at_step = point("step")
        self._at_token = point("token")
        self._at_close = point("close")

    def loads(self) -> None:
        """The model is about to be loaded."""
        if self._at_start is not None:
            self._at_start()

    def ready(self) -> None:
        """The daemon was told that sequences are admitted."""
        if self._at_ready is not None:
            self._at_ready()

    def message(self) -> None:
        """A message was read; on the reader's thread."""
        if self._at_message is not None:
            self._at_message()

    def taken(self, start: Start) -> None:
        """A sequence came; a fault that raises here costs this one alone."""
        if self._at_text is None and self._at_pixels is None:
            return
        parts = [part for turn in start.history for part in turn.parts] + list(start.parts)
        if self._at_text is not None:
            self._at_text("\n".join(part.text for part in parts if isinstance(part, Text)))
        if self._at_pixels is not None:
            from vlmd_bridge.engine.fake.answer import picture_digest

            self._at_pixels(" ".join(picture_digest(self._arena, part) for part in parts if isinstance(part, Picture)))

    def step(self, rows: int) -> None:
        """A step of so many rows begins."""
        if self._at_step is not None:
            self._at_step()
        if self._at_token is not None:
            self._at_token(occurrences=rows)

    def closes(self) -> None:
        """The model is about to be released."""
        if self._at_close is not None:
            self._at_close()
