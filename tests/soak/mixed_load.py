"""An hour of mixed load on the demo model, a fault each minute: no wrong or mixed answer, and memory stays flat.

Four batch clients, four interactive ones, one that disconnects, one that stalls, one that sends garbage. Each answer
is compared with the one that the same request got alone, before the load. A worker or image process is killed, stopped
or hangs each minute (`strikes.ROUND`); the daemon is stopped, and otherwise lives through it all.

Memory: the median of a process's resident memory in the last quarter of the run against that in the second. The daemon
is one process throughout. Workers and image processes are replaced, so those are compared at the same ages: samples
of the first 30 s of a life do not count, and each quarter of an hour has the same faults at the same times.

What a fault may cost is told, and counted apart: a request that streams when its worker is killed is to be asked again,
and an image process that hangs costs the picture that it hangs on (``image_timeout``).

    python -m tests.soak.mixed_load --minutes 60 --report mixed_load.json

Exit status 0 where everything held. The report has every figure; the log of the daemon is kept beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import vlmd
from tests.soak.clients import Load, Tally
from tests.soak.family import Role, Sampler, growth, left_behind, members, peak_mb
from tests.soak.known_answers import FRAMES, KnownAnswers, write_recording
from tests.soak.report import report
from tests.soak.strikes import Strikes
from tests.support.daemon import Daemon, eventually

# The promise: the last quarter's median within so much of the second's.
FLAT = 0.03

# A minute's warming up is no leak: memory is judged in runs from here on, where each quarter has a round of faults.
_JUDGED_S = 4 * 15 * 60.0

# Far above a step of the demo model and above the stops. By default it is two minutes, for much larger models.
_HANG_TIMEOUT_S = 15

# A client's last request may be in the middle of a restarted worker's load.
_LAST_ANSWERS_S = 180.0

# Lines of the daemon's log that tell of a defect; a fault is no defect.
_DEFECTS = ("Traceback", "a defect in")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run gave; `problems` is empty where the promise held."""

    figures: dict[str, float | str]
    problems: list[str]


def run(
    minutes: float,
    *,
    every_s: float = 60.0,
    frames: int = FRAMES,
    seed: int = 1,
    model: str = "demo",
    keep_log: Path | None = None,
) -> Outcome:
    """Load a daemon for `minutes`, a fault each `every_s`, and return what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="vlmd-soak-", dir="/tmp"))
    daemon = Daemon(
        "--idle-timeout", "0", model=model, folder=folder, hang_timeout_s=_HANG_TIMEOUT_S
    )  # fmt: skip
    try:
        return _run(daemon.wait_ready(), minutes * 60, every_s, frames, seed)
    finally:
        if keep_log is not None and (folder / "log").exists():
            shutil.copy(folder / "log", keep_log)
        daemon.close()


def _run(daemon: Daemon, duration_s: float, every_s: float, frames: int, seed: int) -> Outcome:
    pictures = daemon.folder / "frames"
    pictures.mkdir()
    with vlmd.Client(socket=daemon.socket_path, start=False, log=lambda _: None) as alone:
        known = KnownAnswers.ask(alone, write_recording(pictures, frames))
    _say(f"{len(known.frames)} frames and {len(known.texts)} texts known; the load begins")
    tally, stopping = Tally(), threading.Event()
    family = set(members(daemon.process.pid))
    sampler = Sampler(lambda: daemon.process.pid)
    strikes = Strikes(daemon_pid=daemon.process.pid, seed=seed)
    load = Load(socket_path=daemon.socket_path, known=known, tally=tally, stopping=stopping, seed=seed)
    threads = load.start()
    until_s = time.monotonic() + duration_s
    striker = threading.Thread(target=strikes.rounds, args=(every_s, until_s, stopping, _say))
    striker.start()
    while time.monotonic() < until_s:
        time.sleep(min(30.0, max(0.0, until_s - time.monotonic())))
        _say(f"{sum(tally.answers.values())} answers, {len(tally.wrong)} wrong, told {dict(tally.told)}")
    stopping.set()
    for thread in [*threads, striker]:
        thread.join(_LAST_ANSWERS_S)
        if thread.is_alive():
            tally.broken.append(f"{thread.name}: its last request never ended")
    sampler.stop()
    family |= {sample.pid for sample in sampler.samples}
    problems = [*tally.wrong, *tally.broken, *strikes.unnoticed, *_after(daemon, family)]
    return _outcome(sampler, strikes, tally, duration_s, problems)


def _after(daemon: Daemon, family: set[int]) -> list[str]:
    """Stop the daemon as its user would; return what should not be."""
    log = (daemon.folder / "log").read_text()
    problems = [line for line in log.splitlines() if any(word in line for word in _DEFECTS)]
    eventually(lambda: daemon.status()["queue"]["jobs"] == 0, 30, "the end of every job")
    daemon.process.terminate()
    if status := daemon.process.wait(30):
        problems.append(f"the daemon ended with status {status}")
    return problems + left_behind(daemon.folder, family)


def _outcome(sampler: Sampler, strikes: Strikes, tally: Tally, duration_s: float, problems: list[str]) -> Outcome:
    figures: dict[str, float | str] = {
        "minutes": round(duration_s / 60, 1),
        "answers": sum(tally.answers.values()),
        "wrong": len(tally.wrong),
        "faults": sum(strikes.done.values()),
        "told_to_ask_again": sum(tally.told.values()),
        "slowest_s": round(tally.slowest_s, 1),
    }
    roles: tuple[Role, ...] = ("daemon", "worker", "image process")
    for role in roles:
        grown = growth(sampler.samples, role, duration_s)
        if grown is None:
            continue
        figures[f"{role} MB"] = round(peak_mb(sampler.samples, role))
        figures[f"{role} growth"] = f"{grown:+.1%}"
        if duration_s >= _JUDGED_S and grown > FLAT:
            problems.append(f"the memory of the {role} grew by {grown:.1%}")
    figures["kinds"] = json.dumps({"answers": tally.answers, "told": tally.told, "faults": strikes.done})
    figures["hangs_noticed_s"] = json.dumps(strikes.noticed_s)
    return Outcome(figures=figures, problems=problems)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, metavar="S", help="a fault each S seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    args = parser.parse_args()
    log = None if args.report is None else args.report.with_suffix(".log")
    outcome = run(args.minutes, every_s=args.every, seed=args.seed, keep_log=log)
    return report("mixed load", outcome.figures, outcome.problems, args.report)


if __name__ == "__main__":
    sys.exit(main())
