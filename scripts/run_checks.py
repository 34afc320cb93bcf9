"""Run lint, format, types and every suite of tests, each within its budget, and print what each took.

Called by `scripts/test`. A suite that passes its budget is ended with its whole process group and counts as failed.
Later checks run although an earlier one failed, so that one run shows everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Minutes a suite may take on two slow cores; a folder of `tests` that is not named here gets the default. Together
# with the set-up they must stay under CI's 25 minutes.
BUDGETS_MINUTES = {
    "unit": 4,
    "protocol": 2,
    "client": 4,
    "cli": 4,
    "adr006": 4,
    "engine": 7,
    "integration": 9,
    "vectors": 3,
    "faults": 7,
    "soak": 3,
}
TYPESCRIPT_BUDGET_MINUTES = 6
DEFAULT_BUDGET_MINUTES = 2

# Lint and types are quick; a cold mypy cache is what takes time.
STATIC_BUDGET_MINUTES = 2

# Time for pytest to end its fixtures' processes after SIGINT.
INTERRUPT_GRACE_S = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A command and its budget."""

    name: str
    command: list[str]
    budget_minutes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a check ended; `closing` is the last line it printed."""

    name: str
    passed: bool
    seconds: float
    closing: str


def checks() -> list[Check]:
    """Return what there is to run."""
    python = sys.executable
    sources = [name for name in ("protocol", "clients/python", "bridge", "tests", "scripts") if (ROOT / name).is_dir()]
    static = {
        "lint": [python, "-m", "ruff", "check", "--quiet"],
        "format": [python, "-m", "ruff", "format", "--check", "--quiet"],
        "generated": [python, "scripts/generate_protocol.py", "--check"],
        "types": [python, "-m", "mypy", *sources],
    }
    found = [Check(name=name, command=cmd, budget_minutes=STATIC_BUDGET_MINUTES) for name, cmd in static.items()]
    for folder in sorted((ROOT / "tests").iterdir()):
        if any(folder.glob("**/test_*.py")):
            budget = BUDGETS_MINUTES.get(folder.name, DEFAULT_BUDGET_MINUTES)
            command = [python, "-m", "pytest", "--quiet", f"tests/{folder.name}"]
            found.append(Check(name=folder.name, command=command, budget_minutes=budget))
    command = ["bash", "scripts/test_typescript", python]
    found.append(Check(name="typescript", command=command, budget_minutes=TYPESCRIPT_BUDGET_MINUTES))
    return found


def run(check: Check) -> Outcome:
    """Run `check`, its output as it comes, and end it with its process group when its budget is used up."""
    print(f"── {check.name} ──", flush=True)
    started = time.monotonic()
    # A session of its own: ending the group ends daemons and workers that a hanging test started.
    process = subprocess.Popen(
        check.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    over_budget = threading.Event()

    def end() -> None:
        over_budget.set()
        _end_group(process)

    timer = threading.Timer(check.budget_minutes * 60, end)
    timer.start()
    closing = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line.strip() or closing
        code = process.wait()
    except KeyboardInterrupt:
        _end_group(process)
        raise
    finally:
        timer.cancel()
    if over_budget.is_set():
        closing = f"over its budget of {check.budget_minutes} min"
    return Outcome(
        name=check.name,
        passed=code == 0 and not over_budget.is_set(),
        seconds=time.monotonic() - started,
        closing=closing.strip("= "),
    )


def _end_group(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(INTERRUPT_GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def main() -> int:
    """Run everything; 0 where all passed."""
    # A shell that runs this in the background leaves SIGINT ignored, which every child would inherit; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    outcomes = [run(check) for check in checks()]
    print("── summary ──")
    for outcome in outcomes:
        mark = "ok    " if outcome.passed else "FAILED"
        print(f"{mark} {outcome.name:<12} {outcome.seconds:6.1f} s   {outcome.closing}".rstrip())
    print(f"{'all passed' if all(o.passed for o in outcomes) else 'FAILED'} in {time.monotonic() - started:.0f} s")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
