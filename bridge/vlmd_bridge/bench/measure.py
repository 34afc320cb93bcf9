"""Measures: daemons of its own, frames that it draws, the model's own tokenizer for lengths."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from vlmd import Client, Frame, Image
from vlmd_bridge import machine
from vlmd_bridge.bench.figures import Figures, Optimisation
from vlmd_bridge.demo import iter_recording
from vlmd_bridge.engine import switches
from vlmd_bridge.record import SINGLE_INSTRUCTIONS, Record, format_record, single_label
from vlmd_protocol.errors import error_from_code

# Not the frames that `vlmd demo` shows, which may be in somebody's store.
_SEED: Final = 40
_PNG_LEVEL: Final = 1

# Turns of the main figure.
_TURNS: Final = 3

# An optimisation gets as many turns as fit in this time, within these bounds.
_SWITCH_S: Final = 2.0
_SWITCH_TURNS: Final = (3, 5)

_VARIABLE: Final = "VLMD_ENGINE_OFF"

Say = Callable[[str], None]

# Makes a client of a daemon of its own, which starts with the first request.
Start = Callable[[], Client]


@dataclass(kw_only=True, slots=True)
class Turn:
    """One pass over all frames."""

    seconds: float
    first_result_s: float
    frames: list[Frame[None]] = field(default_factory=list)

    @property
    def frames_per_s(self) -> float:
        """Frames per second."""
        return len(self.frames) / self.seconds


def draw(folder: Path, count: int) -> list[Image]:
    """Write `count` synthetic screens to `folder`."""
    images = []
    for index, frame in enumerate(iter_recording(_SEED, count)):
        path = folder / f"frame-{index:04d}.png"
        frame.image.save(path, compress_level=_PNG_LEVEL)
        images.append(Image(path, timestamp=index))
    return images


def measure(start: Start, images: Sequence[Image], names: Sequence[str], say: Say) -> Figures:
    """Describe `images` in turns, and for each optimisation in `names` beside a daemon that does without it.

    Args:
        start: makes a client of a daemon of its own.
        images: what is described.
        names: of `switches.NAMES`.
        say: is told how far it is.

    Raises:
        VlmdError: a daemon cannot be started, or refuses, or a frame fails.
    """
    started_s = time.monotonic()
    with _daemon(start, "") as client:
        say("loading")
        _turn(client, images[:1])
        load_s = time.monotonic() - started_s
        _turn(client, images[:8])  # fills what is computed once for each size of picture
        busy = _Busy(client)
        turns = [_turn(client, images) for _ in range(_TURNS)]
        engine_busy, images_busy = busy.shares()
        say(f"{statistics.median(turn.frames_per_s for turn in turns):.1f} frames/s")
        optimisations = [_compare(start, client, images, name, say) for name in names]
        return _figures(client, images, turns, optimisations, load_s, engine_busy, images_busy)


def _figures(
    client: Client,
    images: Sequence[Image],
    turns: Sequence[Turn],
    optimisations: list[Optimisation],
    load_s: float,
    engine_busy: float,
    images_busy: float,
) -> Figures:
    status = client.status()
    (model, *_) = status.models
    engine = model.engine or {}
    frames_per_s = statistics.median(turn.frames_per_s for turn in turns)
    record_tokens = _record_tokens(client, turns[-1].frames)
    text_tokens = client.count_tokens(SINGLE_INSTRUCTIONS + single_label(0.0)).prompt_tokens
    prompt_tokens = client.count_tokens(SINGLE_INSTRUCTIONS + single_label(0.0), images=images[:1]).prompt_tokens
    return Figures(
        model=model.name,
        frames=len(images),
        frames_per_s=frames_per_s,
        first_result_s=statistics.median(turn.first_result_s for turn in turns),
        tokens_per_s=frames_per_s * record_tokens,
        record_tokens=record_tokens,
        prompt_tokens=prompt_tokens,
        image_tokens=prompt_tokens - text_tokens,
        load_s=load_s,
        memory_bytes={name: psutil.Process(pid).memory_info().rss for name, pid in _pids(client).items()},
        machine_memory_bytes=machine.memory_bytes(),
        engine_busy=engine_busy,
        images_busy=images_busy,
        image_processes=len(status.image_processes),
        cores=machine.cores(),
        load=psutil.getloadavg()[0],
        width=int(engine.get("width", 0)),
        blas=str(engine.get("blas", "")),
        device=_device(client),
        dtype=str(engine.get("dtype", "")),
        threads=int(engine.get("threads", 1)),
        optimisations=optimisations,
    )


def _compare(start: Start, client: Client, images: Sequence[Image], name: str, say: Say) -> Optimisation:
    """Measure with and without `name` in turns, so that what slows the machine meanwhile slows both.

    On a CPU the engine's processor time is compared, which a busy machine disturbs least; on a GPU frames/s.
    """
    gains: list[float] = []
    with _daemon(start, name) as without:
        _turn(without, images[:8])
        cost = _processor_time if _device(client) == "cpu" else _wall_time
        start_s = time.monotonic()
        least, most = _SWITCH_TURNS
        while len(gains) < least or (len(gains) < most and time.monotonic() - start_s < _SWITCH_S):
            with_it = cost(client, images)
            gains.append(cost(without, images) / with_it)
    say(f"{name}: {statistics.median(gains):.2f} x")
    return Optimisation(name=name, gain=statistics.median(gains), low=min(gains), high=max(gains), turns=len(gains))


def _wall_time(client: Client, images: Sequence[Image]) -> float:
    return _turn(client, images).seconds


def _processor_time(client: Client, images: Sequence[Image]) -> float:
    pid = _pids(client)["engine"]
    before_s = _cpu_s(pid)
    _turn(client, images)
    return _cpu_s(pid) - before_s


def _device(client: Client) -> str:
    return str((client.status().models[0].engine or {}).get("device", ""))


def _turn(client: Client, images: Sequence[Image]) -> Turn:
    """Describe `images` once.

    Raises:
        VlmdError: the daemon refuses, or a frame failed, which takes another time than one that is described.
    """
    start_s = time.perf_counter()
    turn = Turn(seconds=0.0, first_result_s=0.0)
    with client.describe(images, batch_size=1, cache=False) as batches:
        for batch in batches:
            turn.first_result_s = turn.first_result_s or time.perf_counter() - start_s
            for frame in batch.results:
                if not frame.ok:
                    raise error_from_code(f"Frame {frame.index} failed: {frame.error or frame.code}", frame.code)
            turn.frames += batch.results
    turn.seconds = time.perf_counter() - start_s
    return turn


def _record_tokens(client: Client, frames: Sequence[Frame[None]]) -> float:
    """Return the mean length of the records in the model's own tokens."""
    around = client.count_tokens(" ").prompt_tokens - 1
    records = [
        format_record(
            Record(description=f.description, activity=f.activity, apps=tuple(f.apps), topics=tuple(f.topics))
        )
        for f in frames
    ]
    return statistics.mean(client.count_tokens(text).prompt_tokens - around for text in records)


class _Busy:
    """How busy the engine and the image processes are from its making to `shares`."""

    def __init__(self, client: Client) -> None:
        self._pids = _pids(client)
        self._threads = int((client.status().models[0].engine or {}).get("threads", 1))
        self._before = {name: _cpu_s(pid) for name, pid in self._pids.items()}
        self._start_s = time.monotonic()

    def shares(self) -> tuple[float, float]:
        """Return the shares of the engine, by its threads, and of the busiest image process."""
        wall_s = time.monotonic() - self._start_s
        used = {name: (_cpu_s(pid) - self._before[name]) / wall_s for name, pid in self._pids.items()}
        images = [share for name, share in used.items() if name.startswith("image")]
        return min(1.0, used.get("engine", 0.0) / self._threads), max(images, default=0.0)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _pids(client: Client) -> dict[str, int]:
    status = client.status()
    found = {"daemon": status.pid}
    if status.models[0].pid is not None:
        found["engine"] = status.models[0].pid
    return found | {f"image process {i}": pid for i, pid in enumerate(status.image_processes, 1)}


@contextmanager
def _daemon(start: Start, off: str) -> Iterator[Client]:
    """Yield a client of a daemon of its own that does without the optimisation `off`."""
    with start() as client:
        before = os.environ.get(_VARIABLE)
        # The daemon inherits the environment when it starts, with the first request.
        os.environ[_VARIABLE] = off or switches.NONE
        try:
            client.hello()
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
        yield client
