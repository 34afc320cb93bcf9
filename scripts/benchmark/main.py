"""Measures vlmd beside its peers and against its targets. See docs/performance.md for the method.

Parts that an interrupted run has finished are not measured again; --fresh begins anew. The full run takes about half an
hour on two cores once its frames are drawn, --quick under six minutes with packages that pip has cached.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmark import machine, plot, report
from benchmark.contender import SCRIPTS, Contender, Loop
from benchmark.daemon import Interleaved, Vlmd
from benchmark.frames import draw_frames
from benchmark.latency import run_beside, run_dispatch, run_fairness
from benchmark.race import LIMIT, VLMD, clear_logs, frames_needed, make_peers, run_race
from benchmark.repeats import CACHE, DEDUPE, capable, draw_recording, run_again, run_recording
from benchmark.scale import run_scale
from benchmark.targets import Results, verdicts
from vlmd_bridge.models.names import resolve_model

ROOT = SCRIPTS.parent
_DOCUMENT = ROOT / "docs" / "performance.md"
_PLOT = ROOT / "docs" / "performance.svg"
_JSON = ROOT / "docs" / "performance.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        minutes: that it takes, about.
        rounds: of the comparison.
        per_round: frames that vlmd gets a round.
        per_peer: that a peer gets.
        all_clients: servers are asked by four and by eight clients, else by eight.
        sizes: frames of a job, for cost per frame and memory.
        recording: frames of the synthetic recording.
        again: frames that are asked twice.
        questions: interactive requests, idle and under load each.
        fairness: frames of all four clients together.
    """

    minutes: str
    rounds: int
    per_round: int
    per_peer: int
    all_clients: bool
    sizes: tuple[int, ...]
    recording: int
    again: int
    questions: int
    fairness: int


_FULL = Plan(
    minutes="25 to 35",
    rounds=5,
    per_round=48,
    per_peer=48,
    all_clients=True,
    sizes=(48, 500, 5000),
    recording=1800,
    again=500,
    questions=30,
    fairness=192,
)
_QUICK = Plan(
    minutes="4 to 6",
    rounds=5,
    per_round=48,
    per_peer=12,
    all_clients=False,
    sizes=(48, 240),
    recording=360,
    again=96,
    questions=10,
    fairness=64,
)


def main() -> int:
    """Measure what has not been measured, print the tables; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer frames; no document is changed")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run measured")
    parser.add_argument("--only", default="", metavar="PARTS", help="comma-separated: " + ", ".join(_PARTS))
    parser.add_argument("--model", default="demo", metavar="M")
    parser.add_argument("--threads", type=int, default=2, help="BLAS threads of peers with OpenBLAS (2)")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".bench", help="for frames, environments and logs (.bench)"
    )
    options = parser.parse_args()
    bench = Bench(options)
    bench.run()
    results = bench.results
    print(f"\n{report.text(results)}\n")
    if not options.quick and not options.only:
        _JSON.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        report.update_document(_DOCUMENT, results)
        if results.race is not None:
            plot.write_plot(_PLOT, results.race)
    elif results.race is not None:
        plot.write_plot(options.folder / "performance.svg", results.race)
    return int(any(verdict.verdict == "MISS" for verdict in verdicts(results)))


class Bench:
    """One run, part by part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.plan = _QUICK if options.quick else _FULL
        self.options = options
        self.folder: Path = options.folder
        self.model = resolve_model(options.model).path
        mode = "quick" if options.quick else "full"
        self.state = self.folder / f"{mode}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(mode=mode)
        if self.state.exists() and not options.fresh:
            self.results = msgspec.json.decode(self.state.read_bytes(), type=Results)
        # A user's own settings, and what is in their store, would change the figures.
        self.environment = machine.own_environment(self.folder)
        self.vlmd = Vlmd(VLMD, self._name(), environment=self.environment)
        self.start_s = time.monotonic()

    def run(self) -> None:
        """Measure every part that is missing; each is kept as soon as it is there."""
        chosen = [part for part in self.options.only.split(",") if part] or list(_PARTS)
        self.results.date = time.strftime("%Y-%m-%d")
        self.results.facts = machine.facts()
        plan = self.plan
        shown = frames_needed(plan.rounds, plan.per_round, all_clients=plan.all_clients)
        frames = max(shown, *plan.sizes, plan.again)
        self.say(f"{self.plan.minutes} minutes on two idle cores; the load is {self.results.facts['load']}")
        self.say(f"drawing {frames} frames …")
        self.frames = draw_frames(self.folder / "frames", frames)
        self.vlmd.ready()
        try:
            for name in chosen:
                if getattr(self.results, name) is None:
                    self.say(name)
                    _PARTS[name](self)
                    self.state.write_bytes(msgspec.json.encode(self.results))
        finally:
            self.vlmd.close()

    def _name(self) -> str:
        return "demo" if self.options.model == "demo" else self.model

    def say(self, text: str) -> None:
        """Tell how far it is, on standard error."""
        print(f"[{time.monotonic() - self.start_s:5.0f} s] {text}", file=sys.stderr, flush=True)

    def race(self) -> None:
        """Compare with the peers."""
        absent: list[str] = []
        logs = self.folder / "logs"
        clear_logs(logs)
        self.vlmd.describe(self.frames.paths[:1])
        peers: list[Contender] = [Interleaved(f"{VLMD}, interleaved", self.vlmd)]
        peers += make_peers(
            self.model,
            vllm_mlx=machine.vllm_mlx(self.folder / "vllm-mlx", absent, self.say),
            blas=machine.preloadable_blas(str(self.vlmd.engine()["blas"]), absent),
            threads=self.options.threads,
            all_clients=self.plan.all_clients,
            logs=logs,
        )
        self.results.race = run_race(
            self.vlmd,
            peers,
            self.frames,
            alone=Vlmd("alone", self._name(), environment=self.environment | {"VLMD_WIDTH": "1"}),
            rounds=self.plan.rounds,
            per_round=self.plan.per_round,
            per_peer=self.plan.per_peer,
            absent=absent,
            say=self.say,
        )
        self.results.notes += absent

    def sizes(self) -> None:
        """Grow the job."""
        self.results.sizes = run_scale(self.vlmd, self.frames, self.plan.sizes, self.say)

    def recording(self) -> None:
        """Describe the synthetic recording."""
        if self._can(DEDUPE):
            drawn = draw_recording(self.folder / "recording", self.plan.recording)
            with self._limit() as limit:
                self.results.recording = run_recording(self.vlmd, limit, drawn, self.say)

    def again(self) -> None:
        """Ask twice."""
        if self._can(CACHE):
            with self._limit() as limit:
                self.results.again = run_again(self.vlmd, limit, self.frames.first(self.plan.again))

    def dispatch(self) -> None:
        """Time the daemon without a model."""
        self.results.dispatch = run_dispatch(self.folder / "small")

    def beside(self) -> None:
        """Be interactive beside a batch job."""
        largest = max(self.plan.sizes)
        self.results.beside = run_beside(self.vlmd, self.frames.first(largest), self.plan.questions, self.say)

    def fairness(self) -> None:
        """Four batch clients at once."""
        self.results.fairness = run_fairness(self.vlmd, self.frames.first(self.plan.fairness), clients=4)

    @contextmanager
    def _limit(self) -> Iterator[Loop]:
        limit = Loop(LIMIT, "limit_loop.py", [self.model], self.folder / "limit.log")
        try:
            limit.ready()
            yield limit
        finally:
            limit.close()

    def _can(self, capability: str) -> bool:
        if capable(self.vlmd, capability):
            return True
        self.say(f"  this daemon's hello has no {capability}: not available")
        return False


_PARTS: dict[str, Callable[[Bench], None]] = {
    "race": Bench.race,
    "sizes": Bench.sizes,
    "recording": Bench.recording,
    "again": Bench.again,
    "dispatch": Bench.dispatch,
    "beside": Bench.beside,
    "fairness": Bench.fairness,
}


if __name__ == "__main__":
    sys.exit(main())
