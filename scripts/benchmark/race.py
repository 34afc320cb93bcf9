"""The comparison: all contenders in turns, round after round, on frames that none has seen before."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmark.contender import Contender, ContenderError, Loop
from benchmark.daemon import Vlmd
from benchmark.figures import Spread, ratios, spread
from benchmark.frames import Frames
from benchmark.servers import Server, ServerClients, ServerProcess, mlx_vlm_server

VLMD = "vlmd"
LIMIT = "the limit: our engine in process, fed RGB"
ADR = "ADR-006 loop"
INSTALLED = "as installed"
PRELOADED = "OpenBLAS preloaded"

# Frames that every contender describes before the first round: what is loaded lazily is loaded then.
_WARM_UP_FRAMES = 8


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contender's rounds: frames/s, processor seconds a frame, and how many records were exact, of how many."""

    name: str
    frames_per_s: list[float]
    cpu_s_per_frame: list[float]
    exact: int
    asked: int

    @property
    def speed(self) -> Spread:
        """Frames per second."""
        return spread(self.frames_per_s)


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    frames_per_round: int
    frames_per_peer: int
    rows: list[Row]
    engine: dict[str, str | int]
    absent: list[str]
    same_as_alone: int
    compared_alone: int

    def row(self, name: str) -> Row | None:
        """Return the row of that name."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, name: str) -> Spread | None:
        """Return how many times as fast as `name` vlmd is, by rounds."""
        other, mine = self.row(name), self.row(VLMD)
        return None if other is None or mine is None else ratios(mine.frames_per_s, other.frames_per_s)

    def hardest(self, marks: Sequence[str], kind: str) -> tuple[str, Spread] | None:
        """Return the fastest contender whose name has one of `marks` and `kind`, and vlmd's ratio to it."""
        names = [row.name for row in self.rows if kind in row.name and any(mark in row.name for mark in marks)]
        pairs = [(name, found) for name in names if (found := self.ratio(name)) is not None]
        return min(pairs, key=lambda pair: pair[1].median) if pairs else None


def run_race(
    vlmd: Vlmd,
    peers: Sequence[Contender],
    frames: Frames,
    *,
    alone: Vlmd,
    rounds: int,
    per_round: int,
    per_peer: int,
    absent: list[str],
    say: Callable[[str], None],
) -> Race:
    """Run `rounds` rounds; each gives vlmd and its limit `per_round` frames, the peers the first `per_peer` of them.

    Servers keep what they have computed for a picture, so no picture is shown twice to the same one: a server that is
    asked by four and by eight clients gets other frames for each.
    """
    tallies = [_Tally(contender=each) for each in _start([vlmd, *peers], frames, absent, say)]
    try:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for each in tallies[:]:
                begin = _WARM_UP_FRAMES * 2 + (_variants(tallies) * number + _variant(each.contender)) * per_round
                count = per_round if each.contender.name in (VLMD, LIMIT) else per_peer
                try:
                    each.take_turn(frames, range(begin, begin + count))
                except ContenderError as error:
                    absent.append(f"left out in round {number + 1}: {error}")
                    tallies.remove(each)
                    continue
                say(f"  {each.contender.name}: {each.speeds[-1]:.2f} frames/s")
    finally:
        for contender in peers:
            contender.close()
    rows = [each.row(frames) for each in tallies]
    say("the same frames alone (width 1)")
    same = _compare_alone(
        alone, frames.only(range(_WARM_UP_FRAMES * 2, _WARM_UP_FRAMES * 2 + per_round)), tallies[0].texts
    )
    engine = {name: value for name, value in vlmd.engine().items() if name in ("blas", "threads", "width", "dtype")}
    # The results are committed: a library's name tells what it is, its folder is this machine's own.
    engine["blas"] = Path(str(engine["blas"])).name
    return Race(
        frames_per_round=per_round,
        frames_per_peer=per_peer,
        rows=rows,
        engine=engine,
        absent=absent,
        same_as_alone=same,
        compared_alone=per_round,
    )


@dataclass(kw_only=True, slots=True)
class _Tally:
    """What one contender has done so far."""

    contender: Contender
    speeds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def take_turn(self, frames: Frames, part: range) -> None:
        """Describe the frames at `part`."""
        run = self.contender.describe([frames.paths[i] for i in part])
        self.contender.rest()
        self.speeds.append(len(part) / run.seconds)
        self.costs.append(run.cpu_seconds / len(part))
        self.texts += run.texts
        self.shown += part

    def row(self, frames: Frames) -> Row:
        """Return its row of the table."""
        return Row(
            name=self.contender.name,
            frames_per_s=self.speeds,
            cpu_s_per_frame=self.costs,
            exact=frames.only(self.shown).exact(self.texts),
            asked=len(self.shown),
        )


def _compare_alone(alone: Vlmd, frames: Frames, texts: Sequence[str]) -> int:
    """Describe the first round's `frames` with a batch width of 1; return how many records are vlmd's of that round."""
    try:
        alone.ready()
        return sum(a == b for a, b in zip(alone.describe(frames.paths).texts, texts, strict=False))
    finally:
        alone.close()


# That ask a server at once.
_CLIENTS = (4, 8)


def make_peers(
    model: str, *, vllm_mlx: Server | None, blas: str | None, threads: int, all_clients: bool, logs: Path
) -> list[Contender]:
    """Start every peer, each in processes of its own."""
    logs.mkdir(parents=True, exist_ok=True)
    servers = [mlx_vlm_server(sys.executable), *([vllm_mlx] if vllm_mlx else [])]
    found: list[Contender] = [Loop(LIMIT, "limit_loop.py", [model], logs / "limit.log")]
    for kind, library in ((INSTALLED, None), *([(PRELOADED, blas)] if blas else [])):
        suffix = kind.split()[0]
        arguments = [model, *([f"--blas={library}", f"--threads={threads}"] if library else [])]
        found.append(Loop(f"{ADR}, {kind}", "adr_loop.py", arguments, logs / f"adr-{suffix}.log"))
        for server in servers:
            process = ServerProcess(
                server, model, blas=library, threads=threads, log=logs / f"{server.name}-{suffix}.log"
            )
            for variant, clients in enumerate(_CLIENTS if all_clients else _CLIENTS[-1:]):
                found.append(ServerClients(f"{server.name}, {clients} clients, {kind}", process, clients, variant))
    return found


def frames_needed(rounds: int, per_round: int, *, all_clients: bool) -> int:
    """Return how many unique frames `run_race` shows."""
    return _WARM_UP_FRAMES * 2 + (len(_CLIENTS) if all_clients else 1) * rounds * per_round


def _start(
    contenders: Sequence[Contender], frames: Frames, absent: list[str], say: Callable[[str], None]
) -> list[Contender]:
    """Return the contenders that have loaded, warm and at rest."""
    found = []
    for each in contenders:
        begin = _variant(each) * _WARM_UP_FRAMES
        try:
            each.ready()
            each.describe(frames.paths[begin : begin + _WARM_UP_FRAMES])
            each.rest()
            found.append(each)
        except ContenderError as error:
            absent.append(str(error))
            each.close()
            say(f"left out: {error}")
    return found


def _variant(contender: Contender) -> int:
    """Return which part of a round's frames is for `contender`."""
    return contender.variant if isinstance(contender, ServerClients) else 0


def _variants(tallies: Sequence[_Tally]) -> int:
    return 1 + max(_variant(each.contender) for each in tallies)


def clear_logs(logs: Path) -> None:
    """Remove the logs of an earlier run."""
    shutil.rmtree(logs, ignore_errors=True)
