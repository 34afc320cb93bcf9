"""`vlmd demo`: draws a synthetic screen recording, describes it with the demonstration's model, checks every record."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from vlmd import Client, Image
from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import starter
from vlmd_bridge.cli.loading import LoadingWatch
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.progress import progress_view
from vlmd_bridge.cli.report import report_error
from vlmd_bridge.cli.results import to_result
from vlmd_bridge.record import Record
from vlmd_protocol.messages import FrameResult

_DEFAULT_FRAMES: Final = 24
_MAX_FRAMES: Final = 10_000

# What the demonstration promises: 22 of 24 exactly right, and the same share of any other number.
_PROMISED_RIGHT: Final = 22
_PROMISED_OF: Final = 24

# A frame every ten seconds, as the recordings of ADR-006 have it.
_SECONDS_PER_FRAME: Final = 10

# The frames are read once, by the daemon: writing them fast counts more than their size.
_PNG_LEVEL: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="which recording (1)")
    parser.add_argument("--frames", type=int, default=_DEFAULT_FRAMES, metavar="N", help="how many frames (24)")
    parser.add_argument("--model", default="demo", metavar="M", help="another model than the demonstration's")
    parser.add_argument("--json", action="store_true", help="print one JSON object per frame, and one at the end")


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; exit 0 where enough frames are exactly right."""
    if not 1 <= args.frames <= _MAX_FRAMES:
        report_error(f"--frames must be from 1 to {_MAX_FRAMES}.", "usage", as_json=args.json)
        return exits.USAGE
    settings = config.load({"model": args.model}).settings
    with tempfile.TemporaryDirectory(prefix="vlmd-demo-") as folder:
        print(f"vlmd: drawing {args.frames} frames of a synthetic recording (seed {args.seed})", file=sys.stderr)
        images, truths = _draw(Path(folder), args.seed, args.frames)
        right = 0
        started = time.monotonic()
        with (
            progress_view(len(images)) as progress,
            # A daemon of its own, which ends with this command: a shared one may serve another model.
            Client(
                settings.model,
                shared=False,
                command=starter(settings),
                python=settings.python,
                log=lambda _: None,
            ) as client,
            LoadingWatch(Path(client.status().socket), progress) as watch,
            client.describe(images, batch_size=settings.batch_size, max_tokens=settings.max_tokens) as batches,
        ):
            for batch in batches:
                for frame in batch.results:
                    right += _show(to_result(frame), truths[frame.index], as_json=args.json)
                if not args.json:
                    print(f"      batch {batch.batch}: {batch.progress.current} of {batch.progress.total} frames")
                sys.stdout.flush()
                progress.update(batch.progress.current)
        ended = time.monotonic()
        loaded = watch.ready_at or started
    passed = is_enough(right, len(images))
    frames_per_s = len(images) / (ended - loaded)
    if args.json:
        summary = {
            "seed": args.seed,
            "frames": len(images),
            "right": right,
            "passed": passed,
            "loadS": round(loaded - started, 3),
            "describeS": round(ended - loaded, 3),
        }
        print(json.dumps(summary))
    else:
        print(
            f"{right} of {len(images)} frames exactly right; "
            f"{ended - loaded:.1f} s ({frames_per_s:.2f} frames/s) after {loaded - started:.1f} s of loading"
        )
        if settings.model == "demo":
            print("The demo model is a demonstration: it knows these synthetic screens and nothing else.")
    return exits.OK if passed else exits.SOME_FAILED


def is_enough(right: int, count: int) -> bool:
    """Whether `right` of `count` frames is what the demonstration promises."""
    return right * _PROMISED_OF >= count * _PROMISED_RIGHT


def _draw(folder: Path, seed: int, count: int) -> tuple[list[Image], list[Record]]:
    """Write the recording's frames to `folder`; return them with what is true of each."""
    # Imported here: it brings Pillow and NumPy, which `--help` need not wait for.
    from vlmd_bridge.demo import iter_recording

    images = []
    truths = []
    for index, frame in enumerate(iter_recording(seed, count)):
        path = folder / f"frame-{index:04d}.png"
        frame.image.save(path, compress_level=_PNG_LEVEL)
        images.append(Image(path, timestamp=index * _SECONDS_PER_FRAME, index=index))
        truths.append(frame.record)
    return images, truths


def _show(result: FrameResult, truth: Record, *, as_json: bool) -> bool:
    """Print one frame and whether it is right: every word of every field."""
    said = Record(
        description=result.description, activity=result.activity, apps=tuple(result.apps), topics=tuple(result.topics)
    )
    right = result.error is None and said == truth
    if as_json:
        line = msgspec.to_builtins(result) | {"right": right, "expected": msgspec.to_builtins(truth)}
        print(json.dumps(line, ensure_ascii=False))
        return right
    print(
        f"{'ok ' if right else 'NO '} {result.timestamp:>5}s  {_text(said) if result.error is None else result.error}"
    )
    if not right:
        print(f"{'':>11}expected: {_text(truth)}")
    return right


def _text(record: Record) -> str:
    return printable(
        f"{record.description} | {record.activity} | {', '.join(record.apps)} | {', '.join(record.topics)}"
    )
