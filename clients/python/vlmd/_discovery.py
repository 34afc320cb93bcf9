"""Finds the command that starts a daemon.

In this order: what the caller names (`command`, `python`), ``VLMD_COMMAND``, ``VLMD_PYTHON``, and
``ESCRIBANO_PYTHON_PATH``: these are named, so nothing else is tried; then virtual environments, this interpreter and
its folder, the `vlmd` on PATH and in the usual folders: the first in which the daemon and its engine are installed.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlmd_protocol.errors import DaemonNotFoundError

# Where installers put commands that a desktop app's PATH does not have.
USUAL_FOLDERS = ("~/.local/bin", "/opt/homebrew/bin", "/usr/local/bin")

# The distribution's packages and the engine's, which only its extra brings.
_DAEMON_MODULES = ("vlmd", "vlmd_bridge")
_ENGINE_MODULE = "mlx_vlm"

# Imports nothing: `find_spec` of a top-level name only looks.
_PROBE = (
    "import importlib.util, sys\n"
    "print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None), sep=',')"
)

# An interpreter on a network volume may be slow; one that hangs must not hang us.
_PROBE_TIMEOUT_S = 10.0

# A script's interpreter stands in its first line, or in its second behind `#!/bin/sh` where the path is long.
_SHEBANG_BYTES = 1024


def find_command(
    command: str | Sequence[str] | None = None,
    python: str | os.PathLike[str] | None = None,
    *,
    needs_engine: bool = True,
    environment: Mapping[str, str] | None = None,
    environments: Sequence[Path] = (),
) -> list[str]:
    """Return the words before ``serve`` of the command that starts a daemon. Blocks while it probes.

    `environments` are virtual environments to look into before the usual ones.

    Raises:
        DaemonNotFoundError: there is none; the message names every place tried and why it would not do.
    """
    environment = os.environ if environment is None else environment
    if command is not None:
        return _named_command(
            shlex.split(command) if isinstance(command, str) else list(command), "command=", environment
        )
    if python is not None:
        return _named_python(os.fspath(python), "python=")
    if value := environment.get("VLMD_COMMAND"):
        return _named_command(shlex.split(value), "VLMD_COMMAND", environment)
    for name in ("VLMD_PYTHON", "ESCRIBANO_PYTHON_PATH"):
        if value := environment.get(name):
            return _named_python(value, name)
    tried: list[str] = []
    for place, words in _candidates(environment, environments):
        why_not = _why_not(words, needs_engine=needs_engine, environment=environment)
        if why_not is None:
            return words
        line = f"\n  {place}: {why_not}"
        if line not in tried:
            tried.append(line)
    raise DaemonNotFoundError(
        "No vlmd daemon that could be started was found. Install one with: pip install 'vlmd[mlx]', or name its "
        f"interpreter with VLMD_PYTHON. Tried:{''.join(tried)}"
    )


def _named_command(words: list[str], origin: str, environment: Mapping[str, str]) -> list[str]:
    if not words:
        raise DaemonNotFoundError(f"{origin} names no command.")
    found = shutil.which(words[0], path=environment.get("PATH"))
    if found is None:
        raise DaemonNotFoundError(f"{origin} names {words[0]}: {_why_no_program(words[0]) or 'not on PATH'}.")
    return [found, *words[1:]]


def _named_python(path: str, origin: str) -> list[str]:
    path = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - resolve() would leave the virtual environment
    if (why_not := _why_no_program(path)) is not None:
        raise DaemonNotFoundError(f"{origin} names {path}: {why_not}.")
    return [path, "-m", "vlmd"]


def _candidates(environment: Mapping[str, str], first: Sequence[Path]) -> Iterator[tuple[str, list[str]]]:
    environments = [environment.get("VIRTUAL_ENV"), ".venv", str(Path("~/.venv").expanduser())]
    for folder in (*first, *environments):
        if folder:
            yield from _python(os.path.abspath(Path(folder, "bin", "python")))  # noqa: PTH100
    if sys.executable:
        yield from _python(sys.executable)
        yield from _script(str(Path(sys.executable).with_name("vlmd")))
    found = shutil.which("vlmd", path=environment.get("PATH"))
    if found is None:
        yield "vlmd on PATH", []
    else:
        yield from _script(found)
    for folder in USUAL_FOLDERS:
        yield from _script(str(Path(folder).expanduser() / "vlmd"))


def _python(path: str) -> Iterator[tuple[str, list[str]]]:
    yield path, [path, "-m", "vlmd"]


def _script(path: str) -> Iterator[tuple[str, list[str]]]:
    yield path, [path]


def _why_not(words: Sequence[str], *, needs_engine: bool, environment: Mapping[str, str]) -> str | None:
    """Return why this command would not start a daemon, None if it would."""
    if not words:
        return "no such command"
    if (why_not := _why_no_program(words[0])) is not None:
        return why_not
    wanted = [*_DAEMON_MODULES, *([_ENGINE_MODULE] if needs_engine else [])]
    interpreter = words[0] if len(words) > 1 else _interpreter_of(words[0])
    if interpreter is None:
        return None  # a program that is no Python script: it knows itself what it needs
    if interpreter == sys.executable:
        missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    else:
        if (why_not := _why_no_program(interpreter)) is not None:
            return f"its interpreter {interpreter}: {why_not}"
        try:
            missing = [name for name in _probe(interpreter, wanted, environment) if name in wanted]
        except (OSError, subprocess.SubprocessError) as error:
            return f"asking {interpreter} what is installed failed: {error}"
    if any(name in missing for name in _DAEMON_MODULES):
        return "vlmd is not installed there"
    return "vlmd is installed there without an engine: pip install 'vlmd[mlx]'" if missing else None


def _probe(interpreter: str, names: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    output = subprocess.run(
        [interpreter, "-c", _PROBE, *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_PROBE_TIMEOUT_S,
        check=True,
        env=dict(environment),
    ).stdout
    return [name for name in output.decode("utf-8", "replace").strip().split(",") if name]


def _why_no_program(path: str) -> str | None:
    if not Path(path).exists():
        return "no such file"
    if not Path(path).is_file():
        return "not a file"
    return None if os.access(path, os.X_OK) else "not executable"


def _interpreter_of(script: str) -> str | None:
    """Return the Python that a console script runs on, None where the script is something else."""
    try:
        with open(script, "rb") as file:
            lines = file.read(_SHEBANG_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    if not lines or not lines[0].startswith("#!"):
        return None
    first = lines[0][2:].strip()
    if first == "/bin/sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        words = shlex.split(lines[1].removeprefix("'''exec'"))
        return words[0] if words else None
    return first if Path(first).name.startswith("python") else None
