"""`vlmd describe`: pictures to records, through the shared daemon, so that the next call finds the model loaded."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlmd import Client, Image
from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, hinted, socket_path, starter
from vlmd_bridge.cli.inputs import InputError, collect, read_schema, timestamps
from vlmd_bridge.cli.loading import LoadingWatch
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.progress import progress_view
from vlmd_bridge.cli.report import report_error
from vlmd_bridge.cli.results import to_result
from vlmd_bridge.cli.results_file import ResultsFile, ResultsFileError
from vlmd_protocol.errors import ModelError, VlmdError
from vlmd_protocol.messages import FrameResult

if TYPE_CHECKING:
    from vlmd_bridge.cli.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, folders of them, or - for paths on stdin")
    parser.add_argument("--model", metavar="M", help="name or folder of the model; demo for the demonstration's")
    parser.add_argument("--mode", choices=("parallel", "interleaved"), help="each frame alone, or N in one prompt")
    parser.add_argument("--batch-size", type=int, metavar="N", help="frames per streamed line (4)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens per batch (2000)")
    parser.add_argument("--prompt", metavar="TEXT", help="instructions instead of the built-in ones; @FILE reads them")
    parser.add_argument("--schema", metavar="FILE", help="JSON Schema that each frame's record validates against")
    parser.add_argument("--no-grammar", action="store_true", help="leave the model's output unconstrained")
    parser.add_argument(
        "--dedupe",
        type=_threshold,
        nargs="?",
        const=True,
        metavar="THRESHOLD",
        help="describe only frames that differ from the last described one; THRESHOLD is the fraction of the pixels "
        "that may differ beyond noise, cursor and pointer (0)",
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        help="keep results on this machine, and infer nothing twice (default: the daemon's setting)",
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--fps", type=float, metavar="N", help="the pictures were taken N a second")
    when.add_argument("--timestamps", metavar="FILE", help="seconds of each picture, one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object per frame as it comes")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="append results as NDJSON; pictures that it holds a result of are not described again, failed ones are. "
        "Each batch is written at once, and synced to the disk every 5 s and at the end",
    )
    add_socket_argument(parser)


def _threshold(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError("takes a fraction from 0 to 1, or nothing: then write it behind the pictures")


def run(args: argparse.Namespace) -> int:
    """Describe the pictures."""
    found = config.load(
        {
            "model": args.model,
            "mode": args.mode,
            "batch_size": args.batch_size,
            "max_tokens": args.max_tokens,
            "socket": args.socket,
            "cache": args.cache,
        }
    )
    try:
        images = _images(args)
        prompt = None if args.prompt is None else _prompt(args.prompt)
        schema = None if args.schema is None else read_schema(Path(args.schema))
        with contextlib.ExitStack() as stack:
            output = None if args.output is None else stack.enter_context(ResultsFile(Path(args.output)))
            todo = images if output is None else output.missing(images)
            job = _Job(args, found.settings, prompt, schema, output, before=len(images) - len(todo))
            return job.describe(todo)
    except InputError as error:
        report_error(str(error), "usage", as_json=args.json)
        return exits.USAGE
    except ResultsFileError as error:
        report_error(str(error), "output_unusable", as_json=args.json)
        return exits.USAGE


class _Job:
    """One run: asks, shows, writes, counts."""

    def __init__(
        self,
        args: argparse.Namespace,
        settings: config.Settings,
        prompt: str | None,
        schema: dict[str, Any] | None,
        output: ResultsFile | None,
        *,
        before: int,
    ) -> None:
        self._args = args
        self._settings = settings
        self._prompt = prompt
        self._schema = schema
        self._output = output
        self._before = before
        self._done = 0
        self._failed = 0

    def describe(self, images: Sequence[Image]) -> int:
        """Describe `images` and return the exit status."""
        started = time.monotonic()
        if images:
            try:
                self._stream(images)
            except KeyboardInterrupt:
                self._summary(started, "interrupted; ")
                return exits.INTERRUPTED
            except ModelError as error:
                raise hinted(error) from None
            except VlmdError:
                if self._done:
                    self._summary(started, "stopped; ")
                raise
        self._summary(started)
        return exits.SOME_FAILED if self._failed else exits.OK

    def _stream(self, images: Sequence[Image]) -> None:
        settings = self._settings
        table = None if self._args.json else _table(images)
        path = socket_path(settings)
        with (
            progress_view(len(images)) as progress,
            LoadingWatch(path, progress),
            Client(
                settings.model,
                socket=path,
                command=starter(settings),
                python=settings.python,
                log=lambda _: None,
            ) as client,
            # Leaving the block cancels on the daemon what is under way, on Ctrl-C too.
            client.describe(
                images,
                batch_size=settings.batch_size,
                max_tokens=settings.max_tokens,
                mode=settings.mode,
                model=settings.model,
                prompt=self._prompt,
                schema=self._schema,
                grammar=not self._args.no_grammar,
                dedupe=self._args.dedupe,
                cache=True if settings.cache else self._args.cache,
            ) as batches,
        ):
            for batch in batches:
                self._take([to_result(frame) for frame in batch.results], table)
                progress.update(self._done)

    def _take(self, results: list[FrameResult], table: Table | None) -> None:
        # The file first: what is shown as done is done.
        if self._output is not None:
            self._output.append(results)
        for result in results:
            self._done += 1
            if result.error is not None or result.code is not None:
                self._failed += 1
            if table is not None:
                table.row(result)
            else:
                print(msgspec.json.encode(result).decode())
                if result.error is not None:
                    text = printable(f"{result.image_path}: {result.error}")
                    print(f"vlmd: {text} [{result.code}]", file=sys.stderr)
        sys.stdout.flush()

    def _summary(self, started: float, prefix: str = "") -> None:
        seconds = time.monotonic() - started
        parts = [f"{self._done - self._failed} described"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._before:
            parts.append(f"{self._before} were described before")
        print(f"vlmd: {prefix}{', '.join(parts)} in {seconds:.1f} s", file=sys.stderr)


def _table(images: Sequence[Image]) -> Table:
    # Not at the top: a bare installation has no rich, and is to be told so by `main`, not by a traceback.
    from vlmd_bridge.cli.table import Table

    return Table(with_time=any(image.timestamp is not None for image in images))


def _images(args: argparse.Namespace) -> list[Image]:
    paths = collect(args.paths, sys.stdin)
    times = timestamps(len(paths), fps=args.fps, file=args.timestamps)
    # The index is the position among all pictures asked for, also where a resumed run leaves some of them out.
    return [
        Image(path, timestamp=time_s, index=index)
        for index, (path, time_s) in enumerate(zip(paths, times, strict=True))
    ]


def _prompt(text: str) -> str:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The prompt {text} cannot be read: {error}.") from None
    if not text.strip():
        raise InputError("The prompt is empty.")
    return text
