"""Frames that need no inference: a recording that hardly changes, and a job that is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmark.contender import Loop
from benchmark.daemon import Lines, Vlmd, image_refs
from benchmark.frames import Frames
from vlmd_bridge.demo.screencast import DEFAULT_SEED, TRUTH_FILE, FrameTruth, write_screencast
from vlmd_bridge.images.decode import decode_picture
from vlmd_bridge.workers.messages import ImageSpec

DEDUPE = "describe.dedupe"
CACHE = "describe.cache"

_MAX_SOURCE_PIXELS = 100_000_000


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """The synthetic recording, described with `dedupe`.

    Attributes:
        frames: of the recording.
        unchanged: those that ground truth calls unchanged against the frame before.
        skipped_unchanged: of these, those that another frame stands for.
        skipped: all that another frame stands for.
        stale: frames that were given the record of another screen.
        failed: frames with an error.
        seconds: wall time.
        decode_seconds: reading, decoding and resizing all frames, one after the other.
        rest_seconds: the engine's time for the frames that were described, in process.
    """

    frames: int
    unchanged: int
    skipped_unchanged: int
    skipped: int
    stale: int
    failed: int
    seconds: float
    decode_seconds: float
    rest_seconds: float

    @property
    def skipped_share(self) -> float:
        """Of the unchanged frames."""
        return self.skipped_unchanged / self.unchanged

    @property
    def over_needed(self) -> float:
        """Wall time over decoding all and inferring the rest."""
        return self.seconds / (self.decode_seconds + self.rest_seconds)


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """A job asked twice with the result store on; milliseconds per frame."""

    frames: int
    first_ms: float
    second_ms: float
    decode_ms: float
    cached: int
    differing: int


def capable(vlmd: Vlmd, capability: str) -> bool:
    """Whether the daemon says that it can do it."""
    with Lines(vlmd.socket) as lines:
        return capability in lines.capabilities


def draw_recording(folder: Path, count: int) -> list[tuple[str, FrameTruth]]:
    """Return the first `count` frames of the recording in `folder`; those of an earlier run are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    truth_file = folder / TRUTH_FILE
    truths = []
    if truth_file.exists():
        truths = [msgspec.json.decode(line, type=FrameTruth) for line in truth_file.read_bytes().splitlines()]
    if len(truths) < count:
        return [(str(path), truth) for path, truth in write_screencast(folder, DEFAULT_SEED, count)]
    return [(str(folder / f"frame-{truth.index:05d}.png"), truth) for truth in truths[:count]]


def run_recording(
    vlmd: Vlmd, limit: Loop, recording: Sequence[tuple[str, FrameTruth]], say: Callable[[str], None]
) -> Recording:
    """Describe the recording with `dedupe`, then time what could not be spared."""
    paths = [path for path, _ in recording]
    with Lines(vlmd.socket) as lines:
        start_s = time.perf_counter()
        results = lines.frames(image_refs(paths), dedupe=True)
        seconds = time.perf_counter() - start_s
    described = [result["index"] for result in results if result.get("duplicateOf") is None]
    say(f"  {len(paths)} frames in {seconds:.1f} s, {len(described)} of them described")
    first = limit.answer(paths[:8])
    rest_seconds = limit.describe([paths[i] for i in described]).seconds
    return Recording(
        frames=len(paths),
        seconds=seconds,
        decode_seconds=_decode_seconds(paths, _spec(first)),
        rest_seconds=rest_seconds,
        **count_frames(recording, results),
    )


def count_frames(recording: Sequence[tuple[str, FrameTruth]], results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the counts of `Recording`; `results` are those of the wire."""
    truths = [truth for _, truth in recording]
    unchanged = [truth.index for truth in truths if truth.kind != "changed"]
    originals = {result["index"]: result.get("duplicateOf") for result in results}
    stale = 0
    for index, original in originals.items():
        # A chain ends at the frame that was described: its words are what this one was given.
        while original is not None and originals[original] is not None:
            original = originals[original]
        stale += original is not None and truths[original].screen != truths[index].screen
    return {
        "unchanged": len(unchanged),
        "skipped_unchanged": sum(originals[index] is not None for index in unchanged),
        "skipped": sum(original is not None for original in originals.values()),
        "stale": stale,
        "failed": sum("error" in result for result in results),
    }


def run_again(vlmd: Vlmd, limit: Loop, frames: Frames) -> Again:
    """Describe `frames` twice with `cache`."""
    refs = image_refs(frames.paths)
    times, answers = [], []
    with Lines(vlmd.socket) as lines:
        for _ in range(2):
            start_s = time.perf_counter()
            answers.append(lines.frames(refs, cache=True))
            times.append(time.perf_counter() - start_s)
    count = len(refs)
    words = ("description", "activity", "apps", "topics")
    return Again(
        frames=count,
        first_ms=times[0] / count * 1000,
        second_ms=times[1] / count * 1000,
        decode_ms=_decode_seconds(frames.paths, _spec(limit.answer(frames.paths[:1]))) / count * 1000,
        cached=sum(bool(result.get("cached")) for result in answers[1]),
        differing=sum(any(a[word] != b[word] for word in words) for a, b in zip(answers[0], answers[1], strict=True)),
    )


def _spec(answer: dict[str, Any]) -> ImageSpec:
    return msgspec.convert(answer["image_spec"], ImageSpec)


def _decode_seconds(paths: Sequence[str], spec: ImageSpec) -> float:
    """Return how long one process takes to read, decode and resize all of `paths`."""
    start_s = time.perf_counter()
    for path in paths:
        decode_picture(Path(path).read_bytes(), spec, name=path, max_source_pixels=_MAX_SOURCE_PIXELS)
    return time.perf_counter() - start_s
