"""What the verbs share that talk to a daemon: which one, and how a client of it is made."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmd import Client
from vlmd_bridge import config
from vlmd_protocol.errors import ModelError
from vlmd_protocol.paths import shared_socket_path


def add_socket_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--socket`."""
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket (default: the user's shared one)")


def socket_path(settings: config.Settings) -> Path:
    """Return the socket that flag, environment or configuration choose, else the shared one."""
    return shared_socket_path() if settings.socket is None else Path(settings.socket)


def chosen_socket(args: argparse.Namespace) -> Path:
    """Return the socket of a command that takes no other setting."""
    return socket_path(config.load({"socket": args.socket}).settings)


def attached_client(path: Path) -> Client:
    """Return a client of the daemon at `path`, which is never started by it."""
    return Client(socket=path, start=False, log=lambda _: None)


def starter(settings: config.Settings) -> list[str] | None:
    """Return the words that start a daemon: `vlmd` in the interpreter that runs this command.

    None where the user chose otherwise, by `VLMD_COMMAND` or the setting `python`.
    """
    if settings.python is not None or os.environ.get("VLMD_COMMAND"):
        return None
    return [sys.executable, "-m", "vlmd"]


def hinted(error: ModelError) -> ModelError:
    """Return `error`; where the daemon that runs has another model, with what to do about it."""
    if error.code != "model_not_loaded":
        return error
    hint = "`vlmd stop` ends it, then the same command starts one; or give this one its own --socket."
    return ModelError(f"{error} {hint}", code=error.code, data=error.data)
