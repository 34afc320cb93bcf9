"""The command: listens at a socket and plays a script, or obeys where none is given."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vlmd_protocol.fake_server.obedient import obedient
from vlmd_protocol.fake_server.script import ScriptError, load_script
from vlmd_protocol.fake_server.server import FakeServer

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until SIGTERM, SIGINT, the end of standard input (`--owned`) or a `shutdown` that is obeyed."""
    parser = argparse.ArgumentParser(prog="python -m vlmd_protocol.fake_server", description=__doc__)
    parser.add_argument("--socket", required=True, type=Path, metavar="PATH", help="where to listen")
    parser.add_argument(
        "--script", type=Path, metavar="FILE", help="what to do; `pydoc vlmd_protocol.fake_server.script`"
    )
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write start-up lines there, as a daemon does")
    parser.add_argument("--owned", action="store_true", help="end when standard input does")
    parser.add_argument("--echo", action="store_true", help="print each request that comes, as a line")
    args = parser.parse_args(arguments)
    try:
        dialogues = load_script(args.script) if args.script is not None else [obedient()]
        server = FakeServer(args.socket, *dialogues, on_request=_echo if args.echo else None)
    except (ScriptError, OSError) as error:
        print(f"fake server: {error}", file=sys.stderr)
        return EXIT_USAGE
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.asked_to_stop.set())
    with server:
        _tell(args.ready_fd, {"status": "bound", "socket": str(args.socket), "pid": os.getpid()})
        ready = {"status": "ready", "model": "fake", "socket": str(args.socket), "pid": os.getpid()}
        _tell(args.ready_fd, ready)
        print(json.dumps(ready), flush=True)
        if args.owned:
            server.stop_at_eof(sys.stdin.buffer)
        server.asked_to_stop.wait()
    return 0


def _echo(request: object) -> None:
    print(json.dumps(request), flush=True)


def _tell(fd: int | None, line: dict[str, object]) -> None:
    if fd is not None:
        os.write(fd, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
