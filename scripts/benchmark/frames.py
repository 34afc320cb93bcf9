"""The frames that are described, drawn once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vlmd_bridge.demo import iter_recording
from vlmd_bridge.record import Record, parse_record

# The demo model was trained on other seeds (scripts/demo_training).
_SEED = 20

_PNG_LEVEL = 1  # drawing 5,000 frames should take a minute or two


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Paths of pictures, and what is true of each."""

    paths: Sequence[str]
    truths: Sequence[Record]

    def first(self, count: int) -> Frames:
        """Return the first `count` of them."""
        return Frames(paths=self.paths[:count], truths=self.truths[:count])

    def only(self, positions: Sequence[int]) -> Frames:
        """Return those at `positions`."""
        return Frames(paths=[self.paths[i] for i in positions], truths=[self.truths[i] for i in positions])

    def exact(self, texts: Sequence[str]) -> int:
        """Return how many of `texts` are the record of their frame, word for word.

        Peers have no grammar: of each answer, the first line that is a record counts, whatever stands around it.
        """
        return sum(_read(text) == truth for text, truth in zip(texts, self.truths, strict=True))


def draw_frames(folder: Path, count: int) -> Frames:
    """Return `count` unique 1280x800 frames in `folder`; those that an earlier run drew are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    truth_file = folder / "truth.json"
    known = msgspec.json.decode(truth_file.read_bytes(), type=list[Record]) if truth_file.exists() else []
    paths = [str(folder / f"{i:05d}.png") for i in range(count)]
    if len(known) < count:
        known = []
        for path, frame in zip(paths, iter_recording(_SEED, count), strict=True):
            frame.image.save(path, compress_level=_PNG_LEVEL)
            known.append(frame.record)
        truth_file.write_bytes(msgspec.json.encode(known))
    return Frames(paths=paths, truths=known[:count])


def _read(text: str) -> Record | None:
    for line in text.strip().splitlines():
        begin = line.find("description:")
        record = parse_record(line[begin:].strip().strip("`")) if begin >= 0 else None
        if record is not None:
            return record
    return None
