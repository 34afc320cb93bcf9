"""Nothing lost: 500 frames with the result store on, while a random process is killed every 2 to 5 seconds.

The victim is the daemon, a worker, an image process or the client, ``vlmd describe --output --cache``, which is
started again whenever it has ended. At the end there are 500 results, each once and in order, equal to those of an
undisturbed run, and nothing is left behind: no process, socket, temporary file.

    python -m tests.soak.random_kills --frames 500 --report random_kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.soak.described import Described, check_results, text_of
from tests.soak.known_answers import write_recording
from tests.soak.report import report

# A run that is killed so often has no bound but this.
_LIMIT_S = 3600.0

_STORE = ("--cache",)


def undisturbed(paths: Sequence[str], model: str, options: Sequence[str]) -> dict[int, tuple[object, ...]]:
    """Return what each frame's result says when nothing happens."""
    run = Described(paths, model=model, options=options)
    try:
        run.start()
        while run.go_on():
            time.sleep(0.1)
        results, problems = check_results(run.results(), paths)
        assert not problems, problems
        run.stop()
        return {index: text_of(result) for index, result in results.items()}
    finally:
        run.close()


def disturbed(
    paths: Sequence[str], model: str, options: Sequence[str], *, every_s: tuple[float, float], seed: int
) -> tuple[dict[int, tuple[object, ...]], Counter[str], list[str], dict[str, float | str]]:
    """Return what each frame's result says, the kills by role, what is wrong, and figures."""
    rng, kills = random.Random(seed), Counter[str]()
    run = Described(paths, model=model, options=options)
    began_s = time.monotonic()
    try:
        run.start()
        due_s = began_s + rng.uniform(*every_s)
        while run.go_on():
            assert time.monotonic() - began_s < _LIMIT_S, f"no end in sight: {run.last_words()}"
            time.sleep(0.05)
            found = run.processes()
            if time.monotonic() < due_s or not found:
                continue
            due_s = time.monotonic() + rng.uniform(*every_s)
            # By role first: otherwise a client would be a victim as often as its many.
            role = rng.choice(sorted({str(role) for _, role in found}))
            victim = rng.choice([pid for pid, other in found if other == role])
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills[role] += 1
        took_s = time.monotonic() - began_s
        lines = run.results()
        results, problems = check_results(lines, paths)
        problems += [f"left behind: {what}" for what in run.stop()]
        figures: dict[str, float | str] = {
            "seconds": round(took_s), "client_starts": run.starts, "failed_and_retried": len(lines) - len(results),
        }  # fmt: skip
        return {index: text_of(result) for index, result in results.items()}, kills, problems, figures
    finally:
        run.close()


def run(
    count: int, *, model: str = "demo", every_s: tuple[float, float] = (2.0, 5.0), seed: int = 1,
    options: Sequence[str] = _STORE,
) -> tuple[dict[str, float | str], list[str]]:  # fmt: skip
    """Describe `count` frames undisturbed and disturbed; return the figures and what is wrong."""
    pictures = Path(tempfile.mkdtemp(prefix="vlmd-soak-", dir="/tmp"))
    try:
        paths = write_recording(pictures, count)
        calm = undisturbed(paths, model, options)
        results, kills, problems, figures = disturbed(paths, model, options, every_s=every_s, seed=seed)
    finally:
        shutil.rmtree(pictures)
    problems += [
        f"frame {index}: {results[index]} instead of {calm[index]}"
        for index in calm
        if results.get(index) != calm[index]
    ]
    return {
        "frames": count, "results": len(results), "different": sum(results.get(i) != calm[i] for i in calm),
        "kills": sum(kills.values()), "victims": json.dumps(kills), **figures,
    }, problems  # fmt: skip


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--every", type=float, nargs=2, default=(2.0, 5.0), metavar="S", help="seconds between kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    args = parser.parse_args()
    figures, problems = run(args.frames, model=args.model, every_s=tuple(args.every), seed=args.seed)
    return report("kills", figures, problems, args.report)


if __name__ == "__main__":
    sys.exit(main())
