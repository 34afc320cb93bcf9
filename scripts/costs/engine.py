"""Runs the engine in this process and says how long it took and on how many tokens."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from costs.rates import Clock
from limit_loop import prepare, run, starts
from vlmd_bridge.engine.backend import open_backend
from vlmd_bridge.record import SINGLE_INSTRUCTIONS
from vlmd_bridge.workers.messages import ConfigureEngine, Count, Counted, Part, Text

# Tokens of a user turn's end and the answer's beginning, which stand behind the image: not shared.
_TAIL_TOKENS = 5

# A record's form, in the runs of tokens that the grammar leaves no choice about.
_FORM = ("description:", " activity:", " apps: [", " | topics: [")
FORCED_RUNS = len(_FORM)

_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What was run, per frame: `seconds` of the engine, tokens by what they are for."""

    seconds: float
    frames: int
    width: int
    prompt_tokens: float
    shared_tokens: float
    image_tokens: float
    record_tokens: float
    forced_tokens: float

    @property
    def steps(self) -> float:
        """Decode steps of a record: its free tokens, and one for each run of forced ones, which go in at once."""
        return self.record_tokens - self.forced_tokens + FORCED_RUNS


class Engine:
    """A loaded checkpoint with a batch width."""

    def __init__(self, folder: Path, *, width: int, threads: int, clock: Clock) -> None:
        self._arena = mmap.mmap(-1, 1 << 28)
        configure = ConfigureEngine(backend="vision", name=folder.name, path=str(folder), width=width, threads=threads)
        self._backend = open_backend(configure, self._arena, lambda stage, fraction: None)
        self._clock = clock

    def measure(self, paths: Sequence[str], *, max_tokens: int) -> Work:
        """Describe `paths`; the best of some rounds counts: noise only ever adds."""
        backend = self._backend
        assert backend.info.image_spec is not None
        pictures = list(prepare(paths, backend.info.image_spec, self._arena))
        messages = starts(paths, pictures, max_tokens)
        run(backend, messages[: backend.info.width + 1])
        best_s, ended = float("inf"), []
        for _ in range(_ROUNDS):
            start_s = self._clock()
            ended = run(backend, messages)
            best_s = min(best_s, self._clock() - start_s)
        text = self._count(messages[0].parts[:0], SINGLE_INSTRUCTIONS)
        image = self._count(messages[0].parts) - self._count(messages[0].parts[:1])
        backend.idle()
        count = len(ended)
        return Work(
            seconds=best_s / count,
            frames=count,
            width=backend.info.width,
            prompt_tokens=sum(each.prompt_tokens for each in ended) / count,
            shared_tokens=text - _TAIL_TOKENS,
            image_tokens=image - 2,  # vision start and end
            record_tokens=sum(each.completion_tokens for each in ended) / count,
            forced_tokens=sum(self._count((), piece) - self._count((), "a") + 1 for piece in _FORM),
        )

    def _count(self, parts: Sequence[Part], text: str = "") -> int:
        counted = self._backend.count(Count(seq=0, parts=(*([Text(text=text)] if text else []), *parts)))
        assert isinstance(counted, Counted)
        return counted.prompt_tokens
