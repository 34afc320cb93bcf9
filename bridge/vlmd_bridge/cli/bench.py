"""`vlmd bench`: frames/s, time to first result, tokens/s, memory, what each optimisation buys here, what to change."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vlmd import Client
from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import starter
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.report import report_error
from vlmd_bridge.engine import switches

if TYPE_CHECKING:
    from vlmd_bridge.bench.figures import Figures

# Under a minute with the demonstration's model on two cores, every optimisation included.
_DEFAULT_FRAMES: Final = 16
_MAX_FRAMES: Final = 10_000

_MIB: Final = 1024**2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--model", metavar="M", help="name or folder of the model (the configured one, else demo)")
    parser.add_argument("--frames", type=int, default=_DEFAULT_FRAMES, metavar="N", help="frames of a turn (16)")
    parser.add_argument(
        "--without",
        default="all",
        metavar="NAMES",
        help=f"optimisations to measure, by comma: all, none, or of {', '.join(switches.NAMES)}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if not 1 <= args.frames <= _MAX_FRAMES:
        report_error(f"--frames must be from 1 to {_MAX_FRAMES}.", "usage", as_json=args.json)
        return exits.USAGE
    try:
        names = switches.NAMES if args.without == "all" else switches.parse_names(args.without)
    except ValueError as error:
        report_error(f"--without: {error}.", "usage", as_json=args.json)
        return exits.USAGE
    settings = config.load({"model": args.model}).settings
    # Imported here: they bring Pillow and NumPy, which `--help` need not wait for.
    from vlmd_bridge.bench.advice import hints
    from vlmd_bridge.bench.measure import draw, measure

    def start() -> Client:
        return Client(
            settings.model or "demo",
            shared=False,
            command=starter(settings),
            python=settings.python,
            log=lambda _: None,
        )

    with tempfile.TemporaryDirectory(prefix="vlmd-bench-") as folder:
        figures = measure(start, draw(Path(folder), args.frames), names, _say)
    advice = hints(figures)
    if args.json:
        print(json.dumps(msgspec.to_builtins(figures) | {"hints": advice}))
        return exits.OK
    rows = list(_rows(figures))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {printable(value)}")
    print()
    for hint in advice:
        print(printable(hint))
    return exits.OK


def _rows(figures: Figures) -> Iterator[tuple[str, str]]:
    yield "model", f"{figures.model}: {figures.dtype} on {figures.device}, loaded in {figures.load_s:.1f} s"
    yield "engine", f"BLAS {figures.blas}, {figures.threads} threads, width {figures.width}"
    yield "speed", f"{figures.frames_per_s:.1f} frames/s, {figures.tokens_per_s:.0f} tokens/s"
    yield "first result", f"{figures.first_result_s * 1000:.0f} ms"
    yield (
        "a frame",
        f"{figures.prompt_tokens} tokens in ({figures.image_tokens} of the image), {figures.record_tokens:.0f} out",
    )
    yield "memory", ", ".join(f"{name} {size / _MIB:.0f} MiB" for name, size in figures.memory_bytes.items())
    yield "busy", f"engine {figures.engine_busy:.0%}, image process {figures.images_busy:.0%}"
    for each in figures.optimisations:
        yield each.name, f"{each.gain:.2f} x as fast with it ({each.low:.2f} to {each.high:.2f}, {each.turns} turns)"


def _say(text: str) -> None:
    print(f"vlmd: {text}", file=sys.stderr)
