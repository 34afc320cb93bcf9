"""vlmd beside ADR-006's own loop: frames per second on the same model and frames, side by side in turns.

Two pairs are measured. *As installed*: the loop on stock mlx-vlm with the BLAS that its wheel links. *Same BLAS*: the
loop with the OpenBLAS preloaded that vlmd's engine uses. vlmd runs in its default mode and in interleaved mode, through
its daemon and client. Loading is not counted; every figure is the median of the rounds, every ratio is taken within its
round. Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import vlmd
from vlmd_bridge.demo.frames import iter_recording
from vlmd_bridge.models.names import resolve_model
from vlmd_bridge.record import Record, format_record, parse_record
from vlmd_protocol.messages import Mode

TARGET_AS_INSTALLED = 2.5
TARGET_SAME_BLAS = 1.3

# Seconds that the frames take, and the text form of each frame's record.
Run = Callable[[list[str]], tuple[float, list[str]]]


class AdrLoop:
    """The loop in a process of its own, so that each has its own BLAS."""

    def __init__(self, model: str, blas: str | None, threads: int) -> None:
        script = Path(__file__).with_name("adr_loop.py")
        command = [sys.executable, str(script), model, f"--threads={threads}", *([f"--blas={blas}"] if blas else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._readline() == "ready\n", f"the loop did not start: {command}"

    def __call__(self, paths: list[str]) -> tuple[float, list[str]]:
        """Describe the frames at `paths`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(paths) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._readline())
        return answer["seconds"], answer["texts"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _readline(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def run_vlmd(client: vlmd.Client, mode: Mode) -> Run:
    """Return a run through the daemon."""

    def run(paths: list[str]) -> tuple[float, list[str]]:
        images = [vlmd.Image(path, timestamp=float(i)) for i, path in enumerate(paths)]
        start = time.perf_counter()
        frames = client.describe_all(images, mode=mode)
        seconds = time.perf_counter() - start
        return seconds, [
            format_record(
                Record(
                    description=frame.description,
                    activity=frame.activity,
                    apps=tuple(frame.apps),
                    topics=tuple(frame.topics),
                )
            )
            for frame in frames
        ]

    return run


def main() -> int:
    """Measure, print the table, and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="BLAS threads of the loop with OpenBLAS")
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    model = resolve_model(options.model).path
    with tempfile.TemporaryDirectory(prefix="vlmd-bench-") as folder, vlmd.Client(options.model) as client:
        paths, truths = [], []
        for i, frame in enumerate(iter_recording(options.seed, options.frames)):
            paths.append(str(Path(folder) / f"{i:04d}.png"))
            frame.image.save(paths[-1])
            truths.append(frame.record)
        client.describe_all(paths[:1])
        engine = client.status().models[0].engine or {}
        blas = str(engine.get("blas"))
        preloadable = blas if blas not in ("reference", "accelerate") else None
        loops = {"ADR-006 loop, as installed": AdrLoop(model, None, options.threads)}
        if preloadable:
            loops["ADR-006 loop, OpenBLAS preloaded"] = AdrLoop(model, preloadable, options.threads)
        runs: dict[str, Run] = {
            "vlmd, parallel": run_vlmd(client, "parallel"),
            "vlmd, interleaved": run_vlmd(client, "interleaved"),
            **loops,
        }
        print(f"{options.frames} frames of 1280x800, model {options.model}, {options.rounds} rounds in turns")
        print(f"vlmd's engine: BLAS {blas}, {engine.get('threads')} threads, width {engine.get('width')}")
        for run in runs.values():
            run(paths[:8])  # what is loaded lazily is loaded now
        rates: dict[str, list[float]] = {name: [] for name in runs}
        exact: dict[str, int] = {}
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds, texts = run(paths)
                rates[name].append(len(paths) / seconds)
                exact[name] = sum(parse_record(text) == truth for text, truth in zip(texts, truths, strict=True))
        for loop in loops.values():
            loop.close()
    return report(rates, exact, options.frames)


def report(rates: dict[str, list[float]], exact: dict[str, int], frame_count: int) -> int:
    """Print the table and the ratios; return the exit status."""
    print(f"{'':34s}  frames/s  (lowest to highest)   exact records")
    for name, values in rates.items():
        spread = f"({min(values):.1f} to {max(values):.1f})"
        print(f"{name:34s}  {statistics.median(values):8.2f}  {spread:20s}   {exact[name]}/{frame_count}")
    missed = False
    pairs = [
        ("ADR-006 loop, as installed", TARGET_AS_INSTALLED),
        ("ADR-006 loop, OpenBLAS preloaded", TARGET_SAME_BLAS),
    ]
    for peer, target in pairs:
        if peer not in rates:
            print(f"no OpenBLAS was found to preload; target {target} not measured")
            continue
        ratios = [mine / theirs for mine, theirs in zip(rates["vlmd, parallel"], rates[peer], strict=True)]
        median = statistics.median(ratios)
        missed = missed or median < target
        verdict = "met" if median >= target else "MISSED"
        print(
            f"vlmd, parallel / {peer}: {median:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"at least {target}: {verdict}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
