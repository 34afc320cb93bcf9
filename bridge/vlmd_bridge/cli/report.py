"""How a command tells that it failed."""

from __future__ import annotations

import contextlib
import json
import os
import sys


def report_error(message: str, code: str, *, as_json: bool = False, ready_fd: int | None = None) -> None:
    """Print the error on stderr, with `as_json` as an object on stdout too.

    Args:
        message: what happened, and what to do.
        code: the stable code.
        as_json: whether the caller reads JSON from stdout.
        ready_fd: for `serve`: where a spawner waits for the line that start-up ended; -1 where it waits on stdout
            alone, as ADR-006's client does. None for other verbs.
    """
    if ready_fd is None or ready_fd < 0:
        # A spawner gets the reason below, and would show what it finds on stderr as well.
        print(f"vlmd: {message} [{code}]", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, "code": code}), flush=True)
    if ready_fd is not None:
        line = json.dumps({"status": "fatal", "error": message, "code": code})
        # A spawner that is gone is no error.
        with contextlib.suppress(OSError):
            print(line, flush=True)
        if ready_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(ready_fd, f"{line}\n".encode())
