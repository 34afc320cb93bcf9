"""`vlmd ping`."""

from __future__ import annotations

import argparse
import json
import time

from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, attached_client, chosen_socket


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_socket_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Ask whether the daemon is there and print how long the answer took."""
    path = chosen_socket(args)
    with attached_client(path) as client:
        # The first answer pays for the connection.
        pid = client.hello().pid
        started = time.perf_counter()
        answer = client.ping()
        round_trip_ms = (time.perf_counter() - started) * 1000
    if args.json:
        print(
            json.dumps(
                {
                    "state": answer.state,
                    "uptimeS": answer.uptime_s,
                    "pid": pid,
                    "socket": str(path),
                    "roundTripMs": round(round_trip_ms, 3),
                }
            )
        )
    else:
        print(f"pid {pid} at {path} is {answer.state}; answered in {round_trip_ms:.1f} ms")
    return exits.OK
