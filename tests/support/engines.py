"""Vision and text backends in the test's own process, and work for them."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmd_bridge.engine.backend import Backend, Event
from vlmd_bridge.engine.platform import Blas
from vlmd_bridge.engine.text import TextBackend
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.workers.arena import Arena, map_arena
from vlmd_bridge.workers.messages import ConfigureEngine, Constraint, Delta, Finished, Part, Picture, Start, Text


class Pictures:
    """An arena with random pictures in it."""

    def __init__(self) -> None:
        self._arena = Arena(32 * 1024 * 1024)
        self.buffer: mmap.mmap = map_arena(self._arena.fd, writable=True)

    def random(self, seed: int, width: int, height: int) -> Picture:
        return self.put(random.Random(seed).randbytes(width * height * 3), width, height)

    def put(self, pixels: bytes, width: int, height: int) -> Picture:
        offset = self._arena.take(len(pixels))
        self.buffer[offset : offset + len(pixels)] = pixels
        return Picture(offset=offset, width=width, height=height)


@contextmanager
def vision_backend(
    folder: Path, pictures: Pictures, *, width: int = 4, trace: bool = False, off: Sequence[str] = ()
) -> Iterator[VisionBackend]:
    configure = ConfigureEngine(backend="vision", name=folder.name, path=str(folder), width=width, off=tuple(off))
    backend = VisionBackend.load(
        configure, pictures.buffer, lambda stage, fraction: None, Blas(name="test", threads=1), trace=trace
    )
    try:
        yield backend
    finally:
        # Not close(): it ends the thread's streams, which later tests in this process still need.
        backend.idle()


@contextmanager
def text_backend(
    folder: Path, *, width: int = 4, trace: bool = False, off: Sequence[str] = ()
) -> Iterator[TextBackend]:
    configure = ConfigureEngine(backend="text", name=folder.name, path=str(folder), width=width, off=tuple(off))
    backend = TextBackend.load(configure, lambda stage, fraction: None, Blas(name="test", threads=1), trace=trace)
    try:
        yield backend
    finally:
        backend.idle()  # as above


def run_alone(backend: Backend, start: Start) -> Event:
    """Run one sequence from start to end."""
    return run_all(backend, [start])[start.seq]


def run_all(backend: Backend, starts: Sequence[Start]) -> dict[int, Event]:
    """Run `starts` together and return how each ended; what was streamed adds up to it."""
    for start in starts:
        backend.start(start)
    ended: dict[int, Event] = {}
    streamed = {start.seq: ["", ""] for start in starts if start.stream}
    for _ in range(20_000):
        for event in backend.step():
            if isinstance(event, Delta):
                assert event.seq not in ended and (event.text or event.reasoning)
                streamed[event.seq][0] += event.text
                streamed[event.seq][1] += event.reasoning
                continue
            ended[event.seq] = event
            if event.seq in streamed and isinstance(event, Finished):
                assert [event.text, event.reasoning or ""] == streamed[event.seq]
        if len(ended) == len(starts):
            return ended
    raise TimeoutError("the sequences do not end")


def ask(seq: int, *parts: Part | str, max_tokens: int = 24, constraint: Constraint | None = None) -> Start:
    """Return a sequence of `parts`."""
    texts = tuple(Text(text=part) if isinstance(part, str) else part for part in parts)
    return Start(seq=seq, parts=texts, max_tokens=max_tokens, constraint=constraint)
