"""`vlmd VERB …`: finds the verb's module, parses its arguments, runs it, and turns errors into exit statuses.

Only what the verb needs is imported: `vlmd serve` is the daemon, which loads no rich, Pillow or NumPy and answers
within 300 ms of its start.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Final, Protocol, cast

from vlmd_bridge.cli import exits
from vlmd_bridge.cli.report import report_error
from vlmd_protocol.errors import VlmdError

# Verb: what it does. Each is a module of this package.
VERBS: Final = {
    "serve": "run the daemon in the foreground",
    "describe": "describe pictures with the shared daemon, which is started where there is none",
    "generate": "generate text from a prompt, pictures or a conversation, with the shared daemon",
    "ping": "ask the shared daemon whether it is there",
    "status": "show the shared daemon's models, queue and memory",
    "stop": "let the shared daemon finish what runs, and end it",
    "logs": "show the log",
    "cache": "show what the result store holds, or empty it",
    "demo": "describe a synthetic recording with the demonstration's own model",
    "mlx-bridge": "be the bridge that ADR-006's adapter starts",
    "bench": "measure how fast a model describes frames here, and what would make it faster",
    "config": "show every setting and where it comes from",
}

# The extra `mlx`, by what it makes importable. A bare installation has the client only; a checkout that nobody
# installed lacks even what that needs.
_ENGINE_MODULES: Final = ("llguidance", "mlx", "mlx_vlm", "numpy", "PIL", "platformdirs", "psutil", "rich")
_BASE_MODULES: Final = ("anyio", "msgspec")

# Verbs that a spawner waits for: it is told on standard output, or its descriptor, how their start-up ended.
_SPAWNED: Final = ("serve", "mlx-bridge")

NOT_INSTALLED_CODE: Final = "engine_not_installed"


class Verb(Protocol):
    """What a verb's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit status."""


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`, without the program's name, and return the exit status."""
    name = argv[0] if argv else "--help"
    if name in {"-h", "--help", "help"}:
        print(_overview())
        return exits.OK if argv else exits.USAGE
    if name in {"-V", "--version"}:
        from vlmd_bridge import __version__

        print(f"vlmd {__version__}")
        return exits.OK
    if name not in VERBS:
        print(f"vlmd: no verb {name!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return exits.USAGE
    return _run(name, argv[1:])


def _run(name: str, argv: Sequence[str]) -> int:
    verb = cast("Verb", importlib.import_module(f"vlmd_bridge.cli.{name.replace('-', '_')}"))
    parser = argparse.ArgumentParser(prog=f"vlmd {name}", description=f"{VERBS[name].capitalize()}.")
    verb.add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or what is wrong
        return int(stop.code or 0)
    as_json = getattr(args, "json", False)
    if missing := missing_modules():
        message = (
            f"The engine is not installed in {sys.prefix} (missing: {', '.join(missing)}). Run: pip install 'vlmd[mlx]'"
        )
        report_error(message, NOT_INSTALLED_CODE, as_json=as_json, ready_fd=_ready_fd(name, args))
        return exits.MODEL
    # Imported here: its settings table costs milliseconds that `--help` need not wait for.
    from vlmd_bridge.config import ConfigError

    try:
        status = verb.run(args)
        # Here and not at the interpreter's exit, where a reader that is gone would make a noise.
        sys.stdout.flush()
        return status
    except ConfigError as error:
        report_error(str(error), error.code, as_json=as_json, ready_fd=_ready_fd(name, args))
        return exits.USAGE
    except VlmdError as error:
        report_error(str(error), exits.error_code(error), as_json=as_json)
        return exits.exit_status(error)
    except BrokenPipeError:
        # Whoever read our output has enough, as in `vlmd describe … | head`. The interpreter flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.PIPE_CLOSED
    except OSError as error:
        # A full disk, a folder that cannot be written: the system's own words say it best.
        report_error(str(error), "io_error", as_json=as_json)
        return exits.SOME_FAILED
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def missing_modules() -> list[str]:
    """Return the modules of the engine that are not installed; none of them is imported for it."""
    return [module for module in (*_BASE_MODULES, *_ENGINE_MODULES) if PathFinder.find_spec(module) is None]


def _ready_fd(name: str, args: argparse.Namespace) -> int | None:
    """Return where a spawner waits for news: its descriptor, or -1 for standard output alone; None for other verbs."""
    if name not in _SPAWNED:
        return None
    fd = getattr(args, "ready_fd", None)
    return -1 if fd is None else int(fd)


def _overview() -> str:
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in VERBS.items())
    return (
        "usage: vlmd VERB [argument …]\n\nThe vision-language daemon.\n\n"
        f"{verbs}\n\n`vlmd VERB --help` shows a verb's arguments, `vlmd --version` the version.\n"
        "Exit status: 0 done, 1 a request or a picture failed, 2 usage, 3 no daemon, 4 the model could not be loaded."
    )
