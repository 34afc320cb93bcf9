"""`vlmd serve`: the daemon. Its process: nothing heavy may be imported here."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from vlmd_bridge.cli import exits
from vlmd_bridge.cli.report import report_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--model", metavar="M", help="name or folder of the model; demo for the demonstration's")
    parser.add_argument("--text-model", metavar="M", help="a second model, for prompts without pictures")
    parser.add_argument("--socket", metavar="PATH", help="where to listen (default: the user's shared socket)")
    parser.add_argument("--adr-socket", metavar="PATH", help="listen there as well, as ADR-006's adapter needs it")
    parser.add_argument("--owned", action="store_true", help="end with the parent process, or at the end of stdin")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="descriptor for start-up lines, one JSON object each")
    parser.add_argument(
        "--idle-timeout", type=float, metavar="S", help="end after S seconds without connection and job; 0: never"
    )
    parser.add_argument("--drain-timeout", type=float, metavar="S", help="time for running work after SIGTERM")
    parser.add_argument("--log-file", metavar="PATH", help="the rotating log (default: in the user's log folder)")
    parser.add_argument("--verbose", action="store_true", default=None, help="log at debug level")
    parser.add_argument("--width", type=int, metavar="N", help="frames decoded together; 0: the engine's choice")
    parser.add_argument("--threads", type=int, metavar="N", help="engine threads; 0: the engine's choice")
    parser.add_argument("--image-processes", type=int, metavar="N", help="processes that open pictures")
    parser.add_argument(
        "--cache", action=argparse.BooleanOptionalAction, help="use the result store for jobs that do not say"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    backstop = None
    if args.owned:
        from vlmd_bridge.daemon.backstop import Backstop

        backstop = Backstop(os.getppid())
    from vlmd_bridge import config
    from vlmd_bridge.cli.daemon_settings import daemon_settings
    from vlmd_protocol.paths import shared_socket_path

    flags = {
        "model": args.model,
        "text_model": args.text_model,
        "socket": args.socket,
        "idle_timeout_s": args.idle_timeout,
        "drain_timeout_s": args.drain_timeout,
        "log_file": args.log_file,
        "verbose": args.verbose,
        "width": args.width,
        "threads": args.threads,
        "image_processes": args.image_processes,
        "cache": args.cache,
    }
    found = config.load(flags)
    chosen = found.settings
    if chosen.model is None:
        from vlmd_bridge.config.recommend import no_model_message

        ready_fd = -1 if args.ready_fd is None else args.ready_fd
        report_error(no_model_message(), "model_not_configured", ready_fd=ready_fd)
        return exits.MODEL
    settings = replace(
        daemon_settings(
            found,
            model=chosen.model,
            socket_path=shared_socket_path() if chosen.socket is None else Path(chosen.socket),
        ),
        adr_socket_path=None if args.adr_socket is None else Path(os.path.abspath(args.adr_socket)),  # noqa: PTH100
        owned=args.owned,
        ready_fd=args.ready_fd,
    )
    from vlmd_bridge.daemon.main import run as run_daemon

    return run_daemon(settings, backstop=backstop)
