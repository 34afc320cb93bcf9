"""Three hours of recording at a frame a second, 10,800 frames with dedupe on, through the command line, and the daemon
killed once: complete, and memory stays flat.

The frames are half an hour of a synthetic recording, six times over, by hard links. The command is not started again:
its client resumes by itself.

Memory: the resident memory of the daemon, the worker and the image process is sampled each second. The
median of the last quarter of the run is compared with that of the second. Samples of the first 30 s of a process do not
count, so that the daemon that is started after the kill is compared at its working size.

    python -m tests.soak.recording --frames 10800 --report recording.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.described import Described, check_results, write_list
from tests.soak.family import Role, Sampler, growth, peak_mb
from tests.soak.report import report
from vlmd_bridge.cli import exits
from vlmd_bridge.demo.screencast import DEFAULT_FRAMES, write_screencast

# The promise: the last quarter's median within so much of the second's.
FLAT = 0.03

# Shorter runs are over before a process is at its working size.
_JUDGED_S = 240.0

# When the daemon is killed: so far into the frames. After the second quarter has begun, before the last has.
_KILL_AT = 1 / 3

_OPTIONS = ("--dedupe", "--fps", "1")


def run(
    count: int, *, model: str = "demo", options: Sequence[str] = _OPTIONS, half_hour: int = DEFAULT_FRAMES
) -> tuple[dict[str, float | str], list[str]]:
    """Describe `count` frames, the same `half_hour` over and over; return the figures and what is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="vlmd-soak-", dir="/tmp"))
    try:
        (folder / "drawn").mkdir()
        began_s = time.monotonic()
        drawn = [str(path) for path, _ in write_screencast(folder / "drawn", count=min(count, half_hour))]
        paths = write_list(folder / "frames", count, drawn)
        print(f"drew {len(drawn)} frames in {time.monotonic() - began_s:.0f} s", flush=True)
        return _describe(paths, model, options)
    finally:
        shutil.rmtree(folder)


def _describe(paths: Sequence[str], model: str, options: Sequence[str]) -> tuple[dict[str, float | str], list[str]]:
    run = Described(paths, model=model, options=options)
    sampler = Sampler(lambda: run.daemon_pid)
    killed = 0
    began_s = said_s = time.monotonic()
    try:
        run.start()
        assert run.client is not None
        while run.client.poll() is None:
            time.sleep(0.2)
            run.processes()
            done = run.count()
            if not killed and done >= _KILL_AT * len(paths) and (pid := run.daemon_pid) is not None:
                os.kill(pid, signal.SIGKILL)
                killed = pid
                print(f"killed the daemon at frame {done}", flush=True)
            if time.monotonic() - said_s > 30:
                said_s = time.monotonic()
                print(f"{time.strftime('%H:%M:%S')} {done} of {len(paths)} frames", flush=True)
        took_s = time.monotonic() - began_s
        sampler.stop()
        results, problems = check_results(run.results(), paths)
        if run.client.returncode != exits.OK:
            problems.append(f"vlmd describe ended with status {run.client.returncode}: {run.last_words()}")
        if not killed:
            problems.append("the daemon was not killed")
        problems += [f"left behind: {what}" for what in run.stop()]
    finally:
        sampler.stop()
        run.close()
    figures: dict[str, float | str] = {
        "frames": len(paths), "results": len(results), "daemon_kills": int(bool(killed)), "seconds": round(took_s),
        "frames_per_s": round(len(results) / took_s, 1),
    }  # fmt: skip
    roles: tuple[Role, ...] = ("daemon", "worker", "image process")
    for role in roles:
        figures[f"{role} MB"] = round(peak_mb(sampler.samples, role))
        if (grown := growth(sampler.samples, role, took_s)) is None:
            continue
        figures[f"{role} growth"] = f"{grown:+.1%}"
        if took_s >= _JUDGED_S and grown > FLAT:
            problems.append(f"the memory of the {role} grew by {grown:.1%}")
    return figures, problems


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=10_800)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    args = parser.parse_args()
    figures, problems = run(args.frames, model=args.model)
    return report("recording", figures, problems, args.report)


if __name__ == "__main__":
    sys.exit(main())
