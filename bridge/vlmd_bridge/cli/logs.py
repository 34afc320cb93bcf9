"""`vlmd logs`: the end of the log file, and with `-f` what is added to it."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final, TextIO

from vlmd_bridge import config, paths
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, attached_client, chosen_socket
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.report import report_error
from vlmd_protocol.errors import VlmdError

_DEFAULT_LINES: Final = 50
_POLL_S: Final = 0.2

# As `vlmd_bridge.logs` writes it; the lines of a traceback, indented, have no head.
_LINE: Final = re.compile(r"(?P<time>\S+Z) (?P<pid>\d+) (?P<level>[A-Z]+) (?P<message>.*)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_socket_argument(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="wait for further lines")
    parser.add_argument("-n", "--lines", type=int, default=_DEFAULT_LINES, metavar="N", help="lines to begin with (50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Print the log."""
    path = _log_file(args)
    try:
        stream = _open(path)
    except FileNotFoundError:
        report_error(f"There is no log yet: {path}.", "log_not_found", as_json=args.json)
        return exits.SOME_FAILED
    last = deque(_older(path), maxlen=max(args.lines, 0))
    last.extend(stream)
    for line in last:
        _print(line, args.json)
    if args.follow:
        _follow(path, stream, args.json)
    stream.close()
    return exits.OK


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace")


def _older(path: Path) -> list[str]:
    """Return the lines of the file that was moved aside last: the current one may have begun a moment ago."""
    try:
        with _open(path.with_name(f"{path.name}.1")) as stream:
            return stream.readlines()
    except FileNotFoundError:
        return []


def _log_file(args: argparse.Namespace) -> Path:
    """Return the running daemon's log file, or the one that a daemon would use."""
    try:
        with attached_client(chosen_socket(args)) as client:
            used = client.status().log_file
    except VlmdError:
        used = None
    chosen = used or config.load().settings.log_file
    return paths.log_file() if chosen is None else Path(chosen)


def _follow(path: Path, stream: TextIO, as_json: bool) -> None:
    """Print what is added, until interrupted; the file is opened anew when it was moved aside."""
    while True:
        # Looked at before reading: what came into the old file before it was moved is then read below.
        moved = _moved(path, stream)
        for line in stream:
            _print(line, as_json)
        sys.stdout.flush()
        if moved and path.exists():
            stream.close()
            stream = _open(path)
        else:
            time.sleep(_POLL_S)


def _moved(path: Path, stream: TextIO) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return True


def _print(line: str, as_json: bool) -> None:
    text = line.rstrip("\n")
    if not as_json:
        print(printable(text))
        return
    match = _LINE.fullmatch(text)
    if match is None:
        print(json.dumps({"message": text}))
    else:
        print(json.dumps(match.groupdict() | {"pid": int(match["pid"])}))
