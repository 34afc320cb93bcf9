"""`vlmd mlx-bridge`: the daemon as ADR-006's adapter starts and uses it. `scripts/mlx_bridge.py` comes to here."""

from __future__ import annotations

import argparse
import logging
import os
import select
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlmd_bridge.cli import exits

if TYPE_CHECKING:
    from vlmd_bridge.config import Config

# ADR-006's configuration table. The model is a default here alone: elsewhere none is chosen by surprise.
DEFAULT_MODEL: Final = "mlx-community/Qwen3-VL-2B-Instruct-bf16"
DEFAULT_SOCKET: Final = "/tmp/escribano-mlx.sock"  # noqa: S108 - the election checks what it finds there
SOCKET_VARIABLE: Final = "ESCRIBANO_MLX_SOCKET_PATH"

# What the log tells the origin of: that part of the table which changes answers.
_TOLD: Final = ("model", "batch_size", "max_tokens", "mode")

log = logging.getLogger("vlmd.adr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no argument: the adapter gives none, the environment has its table."""
    parser.epilog = "Configured by ADR-006's environment variables; see docs/adr-006.md."


def run(args: argparse.Namespace) -> int:
    """Serve, or stand by beside the daemon that does, until the parent process ends."""
    del args
    parent = os.getppid()
    if _reader_is_gone(1):
        # Only the parent reads our standard output: it died before we could look who it is.
        return exits.OK
    # A daemon that somebody owns ends with its standard input. The adapter's is at its end from the beginning.
    _close_stdin()

    from vlmd_bridge import config
    from vlmd_bridge.cli.daemon_settings import daemon_settings
    from vlmd_bridge.daemon.main import run as run_daemon
    from vlmd_bridge.daemon.standby import StandBy
    from vlmd_bridge.logs import setup_logging

    found = config.load()
    path = socket_path(os.environ)
    settings = replace(
        daemon_settings(found, model=found.settings.model or DEFAULT_MODEL, socket_path=path),
        adr_socket_path=path,
        owned=True,
        owner_pid=parent,
        text_model=None,  # the adapter has no method for it
        idle_timeout_s=None,  # the adapter needs its child for as long as it lives itself
    )
    setup_logging(settings.log_file, stderr=True, verbose=settings.verbose)
    log.info("%s", describe_origins(found, os.environ))
    return run_daemon(settings, StandBy(parent))


def socket_path(environ: Mapping[str, str]) -> Path:
    """Return where the adapter will connect.

    Not `VLMD_SOCKET`, nor the configuration file's `socket`: they are for vlmd's own clients, and the adapter does not
    know them.
    """
    return Path(os.path.abspath(environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET))  # noqa: PTH100 - follows no symlink


def describe_origins(found: Config, environ: Mapping[str, str]) -> str:
    """Return, in a line, the settings of ADR-006's table and where each comes from."""
    told = []
    for name in _TOLD:
        setting = found.origins[name]
        if name == "model" and setting.value is None:
            told.append(f"model {DEFAULT_MODEL} (ADR-006's default)")
        else:
            told.append(f"{name} {setting.value} ({setting.origin})")
    origin = f"environment {SOCKET_VARIABLE}" if environ.get(SOCKET_VARIABLE) else "ADR-006's default"
    return ", ".join([*told, f"socket {socket_path(environ)} ({origin})"])


def _close_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _reader_is_gone(fd: int) -> bool:
    """Whether `fd` is a pipe, or a socket pair as Node makes them, that nobody reads any more."""
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        poll = select.poll()
        poll.register(fd, 0)  # POLLERR of a pipe and POLLHUP of a socket are reported unasked
        return bool(poll.poll(0))
    except OSError:
        return False
