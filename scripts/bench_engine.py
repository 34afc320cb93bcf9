"""Measure the engine alone: CPU time a frame on the demo model, with all optimisations and with each switched off.

The backend runs in this process and is fed RGB pictures of the model's own size: no daemon, no socket, no decoding.
Variants take turns in rounds, so that a busy machine slows all of them alike; CPU time is told, by stage. Every
variant must give the answers of the first one.
Usage: python scripts/bench_engine.py [--model FOLDER] [--frames 48] [--rounds 5] [--width N] [--only NAME,NAME]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmd_bridge.demo import MODEL_PATH, recording
from vlmd_bridge.engine.platform import choose_blas, forbid_downloads

forbid_downloads()
BLAS = choose_blas(1)

import mlx.core as mx  # noqa: E402 - the BLAS comes before MLX

from limit_loop import run, starts  # noqa: E402 - as above
from vlmd_bridge.engine.switches import NAMES  # noqa: E402 - as above
from vlmd_bridge.engine.vision import VisionBackend  # noqa: E402 - as above
from vlmd_bridge.workers.arena import Arena, map_arena  # noqa: E402 - as above
from vlmd_bridge.workers.messages import ConfigureEngine, Picture, Start  # noqa: E402 - as above

# The demo frames' own, of no meaning to the model: one a second.
_SEED = 5


@dataclass(kw_only=True, slots=True)
class Stages:
    """CPU milliseconds by stage, of one round."""

    spent_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is spent inside as `name`."""
        began_s = time.process_time()
        yield
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + (time.process_time() - began_s) * 1e3


@dataclass(kw_only=True, slots=True)
class Variant:
    """One setting of the switches, its backend, and what its rounds cost."""

    name: str
    backend: VisionBackend
    rounds: list[Stages] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def run(self, messages: Sequence[Start]) -> None:
        """Run one round: all `messages`, as the daemon would send them."""
        stages = Stages()
        backend = self.backend
        prompts = backend.tokenize
        backend.tokenize = _timed(prompts, stages)  # type: ignore[method-assign, assignment]
        began_s = time.process_time()
        ended = run(backend, messages)
        total_ms = (time.process_time() - began_s) * 1e3
        backend.tokenize = prompts  # type: ignore[method-assign]
        stages.spent_ms["rest"] = total_ms - sum(stages.spent_ms.values())
        stages.spent_ms["all"] = total_ms
        self.rounds.append(stages)
        self.answers = [event.text for event in ended]
        backend.idle()


def _timed(tokenize: Callable[[Start], Any], stages: Stages) -> Callable[[Start], Any]:
    def timed(start: Start) -> Any:
        with stages.stage("prompt+tower"):
            prompt = tokenize(start)
            mx.eval([value for value in prompt.inputs.values() if isinstance(value, mx.array)])
        return prompt

    return timed


def _open(name: str, model: Path, arena: Arena, width: int) -> Variant:
    off = () if name == "all on" else (name,)
    configure = ConfigureEngine(backend="vision", name="bench", path=str(model), width=width, threads=1, off=off)
    buffer = map_arena(arena.fd, writable=True)
    return Variant(name=name, backend=VisionBackend.load(configure, buffer, lambda stage, fraction: None, BLAS))


def _pictures(arena: Arena, model: Path, count: int) -> list[Picture]:
    """Return the demo's frames in `arena`, of the size at which its model sees a screen."""
    buffer = map_arena(arena.fd, writable=True)
    pictures = []
    for frame in recording(_SEED, count, (256, 160)):
        data = frame.image.convert("RGB").tobytes()
        offset = arena.take(len(data))
        buffer[offset : offset + len(data)] = data
        pictures.append(Picture(offset=offset, width=256, height=160))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=0, help="rows of a batch; 0 for the engine's choice")
    parser.add_argument("--only", default=",".join(NAMES), help="switches to turn off, one at a time")
    arguments = parser.parse_args()
    arena = Arena(arguments.frames * (256 * 160 * 3 + 65536))
    pictures = _pictures(arena, arguments.model, arguments.frames)
    messages = starts([f"{i}.png" for i in range(len(pictures))], pictures, None)
    names = ["all on", *(name for name in arguments.only.split(",") if name)]
    variants = [_open(name, arguments.model, arena, arguments.width) for name in names]
    for variant in variants:
        variant.run(messages[:8])  # buffers and caches, outside the measurement
        variant.rounds.clear()
    for _ in range(arguments.rounds):
        for variant in variants:
            variant.run(messages)
    stages = list(variants[0].rounds[0].spent_ms)
    print(f"CPU ms a frame, medians of {arguments.rounds} rounds of {len(messages)} frames")
    print(f"{'off':16}" + "".join(f"{stage:>14}" for stage in stages) + "   all / all on")
    for variant in variants:
        medians = [statistics.median(r.spent_ms[stage] for r in variant.rounds) / len(messages) for stage in stages]
        pairs = zip(variant.rounds, variants[0].rounds, strict=True)
        ratio = statistics.median(a.spent_ms["all"] / b.spent_ms["all"] for a, b in pairs)
        same = sum(a == b for a, b in zip(variant.answers, variants[0].answers, strict=True))
        print(
            f"{variant.name:16}" + "".join(f"{value:14.2f}" for value in medians) + f"{ratio:15.3f}"
            f"   {same} of {len(messages)} answers equal, {variant.backend.info.width} rows"
        )


if __name__ == "__main__":
    main()
