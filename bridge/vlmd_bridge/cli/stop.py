"""`vlmd stop`: the daemon takes no new work, finishes what runs, and ends."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, attached_client, chosen_socket
from vlmd_protocol.errors import ConnectError, DeadlineError, UnsafeSocketError

# Beyond the daemon's own drain limit: ending its processes.
_MARGIN_S: Final = 15.0
_POLL_S: Final = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_socket_argument(parser)
    parser.add_argument("--timeout", type=float, metavar="S", help="how long to wait until it is gone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Drain the daemon and wait until its process is gone; remove what a killed one left. None running is no error."""
    path = chosen_socket(args)
    started = time.monotonic()
    try:
        with attached_client(path) as client:
            pid = client.hello().pid
            client.shutdown()
    except ConnectError as error:
        text = f"nothing to stop: {error}"
        if removed := _remove_stale(path):
            text += " Removed the socket that a killed daemon left."
        _tell(args, {"stopped": False, "pid": None, "socket": str(path), "removed": removed}, text)
        return exits.OK
    deadline = started + (_default_timeout_s() if args.timeout is None else args.timeout)
    while _is_alive(pid):
        if time.monotonic() > deadline:
            message = f"The daemon (pid {pid}) still drains after {time.monotonic() - started:.0f} s; its log says why."
            raise DeadlineError(message, phase="total")
        time.sleep(_POLL_S)
    took_s = round(time.monotonic() - started, 3)
    _tell(
        args,
        {"stopped": True, "pid": pid, "socket": str(path), "seconds": took_s},
        f"stopped pid {pid} at {path} in {took_s:.1f} s",
    )
    return exits.OK


def _remove_stale(path: Path) -> bool:
    from vlmd_bridge.daemon.election import remove_stale

    try:
        return remove_stale(path)
    except (OSError, UnsafeSocketError):
        return False  # nothing to stop all the same; who starts at this path is told what is wrong with it


def _default_timeout_s() -> float:
    from vlmd_bridge import config

    # The daemon may run with another drain limit; this is the one it would be started with now.
    return config.load().settings.drain_timeout_s + _MARGIN_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Another user's: ours is gone and its number was given away.
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and only its parent has not taken notice."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _tell(args: argparse.Namespace, result: dict[str, object], text: str) -> None:
    print(json.dumps(result) if args.json else text, file=sys.stdout)
