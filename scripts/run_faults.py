"""Put the promises of docs/reliability.md to the test, collect their figures, and print or write them as a table.

Called by `scripts/faults`. A promise is ``tests/faults/test_promise_NN_*.py`` and what `BESIDE` names. On every push
the same tests run at their small size; ``--long`` runs the large one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fault_table import Row, table, write

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"

# Tests of a promise that have their home elsewhere: what pytest is given besides the promise's own file.
BESIDE = {
    2: ["tests/vectors/test_codec.py"],
    15: ["tests/vectors/test_paths.py", "tests/unit/test_election.py"],
    16: ["tests/adr006/test_old_client.py"],
}

# Tests of the TypeScript client that belong to a promise, by their files' names.
TYPESCRIPT = {2: ["splits"], 4: ["kills"]}

# The long runs by name: what `python -m` is given.
SOAKS = {
    "kills": ["tests.soak.random_kills"],
    "recording": ["tests.soak.recording"],
    "mixed": ["tests.soak.mixed_load", "--minutes", "60"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One row to come: the commands that make it."""

    promise: str
    what: str
    commands: list[list[str]]


def promises(wanted: list[int]) -> list[Trial]:
    """Return the trials of the promises, all of them where none is wanted in particular."""
    found = []
    for path in sorted((ROOT / "tests" / "faults").glob("test_promise_*.py")):
        _, _, number, *words = path.stem.split("_")
        if wanted and int(number) not in wanted:
            continue
        tests = [str(path.relative_to(ROOT)), *BESIDE.get(int(number), [])]
        # A run that is to the end tells more than one that stops at its first failure.
        commands = [[sys.executable, "-m", "pytest", "--quiet", *tests]]
        if int(number) in TYPESCRIPT:
            commands.append(["bash", "scripts/test_typescript", sys.executable, *TYPESCRIPT[int(number)]])
        found.append(Trial(promise=str(int(number)), what=" ".join(words), commands=commands))
    return found


def soaks(wanted: list[str]) -> list[Trial]:
    """Return the trials of the long runs."""
    return [
        Trial(promise=f"soak {name}", what=SOAKS[name][0].rpartition(".")[2].replace("_", " "),
              commands=[[sys.executable, "-m", *SOAKS[name]]])
        for name in wanted
    ]  # fmt: skip


def run(trial: Trial, *, long: bool) -> Row:
    """Run `trial`, its output as it comes, and return its row."""
    print(f"── {trial.promise}: {trial.what} ──", flush=True)
    began_s = time.monotonic()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as figures:
        environment = {**os.environ, "VLMD_FIGURES": figures.name, "VLMD_FAULTS": "long" if long else "push"}
        passed = all(
            subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
            for command in trial.commands
        )
        lines = [json.loads(line) for line in figures]
    return Row(
        promise=trial.promise,
        what=trial.what,
        size="long" if long or trial.promise.startswith("soak") else "push",
        passed=passed,
        figures=_summed_up(trial.promise, lines),
        took_s=time.monotonic() - began_s,
    )


def _summed_up(promise: str, lines: list[dict[str, object]]) -> str:
    """Return all figures of a trial in one line; a name that comes again has all its values."""
    values: dict[str, list[str]] = {}
    for line in lines:
        # "12, daemon killed" is a part of promise 12 with figures of its own.
        part = str(line["promise"]).removeprefix(promise).strip(", ")
        for name, value in line.items():
            if name in ("promise", "long"):
                continue
            found = values.setdefault(f"{part} {name}".strip().replace("_", " "), [])
            if str(value) not in found:
                found.append(str(value))
    return ", ".join(f"{name} {'/'.join(found)}" for name, found in values.items())


def main() -> int:
    """Run what was asked for; 0 where every promise held."""
    # A shell that runs this in the background leaves SIGINT ignored, which every child would inherit; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--long", action="store_true", help="the long column of the table")
    parser.add_argument("--promise", type=int, nargs="+", default=[], metavar="N", help="only these")
    parser.add_argument("--soak", nargs="+", default=[], choices=sorted(SOAKS), help="these long runs, and no promise")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    trials = soaks(args.soak) if args.soak and not args.promise else promises(args.promise) + soaks(args.soak)
    began_s = time.monotonic()
    rows = []
    for trial in trials:
        rows.append(run(trial, long=args.long))
        if args.write:
            # Each at once: a run of hours that is broken off has told what it knows.
            write(PAGE, rows[-1:])
    print("── promises ──")
    print(table(rows))
    missed = [row.promise for row in rows if not row.passed]
    print(f"{f'MISSED: {missed}' if missed else 'every promise held'} in {time.monotonic() - began_s:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
