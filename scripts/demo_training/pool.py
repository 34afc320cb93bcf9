"""A pool of frames as the model sees them, rendered once and read by every training step."""

from __future__ import annotations

import io
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vlmd_bridge.demo import Frame, Topic, draw_frame
from vlmd_bridge.record import Record

# What the image processor makes of 1280x800 under the checkpoint's pixel bound.
SEEN_WIDTH = 256
SEEN_HEIGHT = 160

_SIZES = ((1280, 800),) * 6 + ((640, 400),) * 2 + ((1024, 640), (1440, 900))

PixelMap = np.memmap[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is true of one frame of the pool."""

    record: Record
    answers: dict[Topic, str]


def see(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return `image` at the size the model sees, by one of the paths a picture may take to it."""
    size = (SEEN_WIDTH, SEEN_HEIGHT)
    if rng.random() < 0.3:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=rng.randint(60, 95))
        image = Image.open(encoded)
        if rng.random() < 0.6:
            image.draft("RGB", size)
        image = image.convert("RGB")
    bicubic, lanczos = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
    filters = ((bicubic, None), (bicubic, None), (bicubic, None), (bicubic, 2.0), (bicubic, 3.0), (lanczos, 2.0))
    more = ((lanczos, 3.0), (lanczos, None), (Image.Resampling.BILINEAR, None), (Image.Resampling.BOX, None))
    resample, reducing_gap = rng.choice(filters + more)
    return image.resize(size, resample, reducing_gap=reducing_gap)


class FramePool:
    """`count` frames in a folder: pixels in a memory map, truths as JSON lines, one file for each renderer."""

    def __init__(self, folder: Path, *, seed: int, count: int, renderers: int = 2) -> None:
        self.folder = folder
        self._seed = seed
        self._count = count
        self._renderers = renderers
        self._truths: list[list[Truth]] = [[] for _ in range(renderers)]
        self._offsets = [0] * renderers
        folder.mkdir(parents=True, exist_ok=True)
        self.pixels = _open_pixels(folder, count)

    def start_rendering(self) -> list[BaseProcess]:
        """Start the renderers; each goes on where it stopped. Returns their processes."""
        context = get_context("spawn")
        processes: list[BaseProcess] = []
        for renderer in range(self._renderers):
            arguments = (self.folder, self._seed, self._count, self._renderers, renderer)
            process = context.Process(target=_render, args=arguments, daemon=True)
            process.start()
            processes.append(process)
        return processes

    def wait(self, count: int) -> None:
        """Return when `count` frames are rendered."""
        while self.ready() < count:
            time.sleep(0.2)

    def ready(self) -> int:
        """Return how many frames from the first one on are rendered."""
        for renderer, truths in enumerate(self._truths):
            truths.extend(self._new_truths(renderer))
        return min(len(truths) * self._renderers for truths in self._truths)

    def _new_truths(self, renderer: int) -> Iterator[Truth]:
        path = _truths_path(self.folder, self._renderers, renderer)
        if not path.exists():
            return
        with path.open("rb") as lines:
            lines.seek(self._offsets[renderer])
            for line in lines:
                # A renderer may be in the middle of its last line.
                if not line.endswith(b"\n"):
                    break
                self._offsets[renderer] += len(line)
                yield _from_json(json.loads(line))

    def truth(self, index: int) -> Truth:
        """Return what is true of frame `index`."""
        return self._truths[index % self._renderers][index // self._renderers]


def description_numbers(pool: FramePool, count: int) -> dict[str, int]:
    """Return a number for each description among the first `count` frames, which must be ready."""
    return {name: i for i, name in enumerate(sorted({pool.truth(i).record.description for i in range(count)}))}


def _open_pixels(folder: Path, count: int) -> PixelMap:
    path = folder / "pixels.u8"
    shape = (count, SEEN_HEIGHT, SEEN_WIDTH, 3)
    mode: Literal["r+", "w+"] = "r+" if path.exists() and path.stat().st_size == math.prod(shape) else "w+"
    return np.memmap(path, dtype=np.uint8, mode=mode, shape=shape)


def _truths_path(folder: Path, renderers: int, renderer: int) -> Path:
    return folder / f"truths-{renderer}-of-{renderers}.jsonl"


def _render(folder: Path, seed: int, count: int, renderers: int, renderer: int) -> None:
    pixels = _open_pixels(folder, count)
    path = _truths_path(folder, renderers, renderer)
    done = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as truths:
        for index in range(renderer + done * renderers, count, renderers):
            rng = random.Random(f"{seed}/{index}")
            frame = draw_frame(rng, rng.choice(_SIZES))
            pixels[index] = np.asarray(see(frame.image, rng))
            truths.write(json.dumps(_to_json(frame)) + "\n")
            truths.flush()


def _to_json(frame: Frame) -> dict[str, object]:
    record = frame.record
    fields = [record.description, record.activity, list(record.apps), list(record.topics)]
    return {"record": fields, "answers": frame.answers}


def _from_json(line: dict[str, object]) -> Truth:
    fields, answers = line["record"], line["answers"]
    assert isinstance(fields, list)
    assert isinstance(answers, dict)
    description, activity, apps, topics = fields
    record = Record(description=description, activity=activity, apps=tuple(apps), topics=tuple(topics))
    return Truth(record=record, answers={Topic(topic): answer for topic, answer in answers.items()})
