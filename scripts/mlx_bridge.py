#!/usr/bin/env python3
"""ADR-006's bridge: what Escribano's adapter spawns as ``python3 scripts/mlx_bridge.py``. See docs/adr-006.md.

Runs from any folder, installed or not: linked or called in vlmd's own checkout it uses that, copied elsewhere the vlmd
that is installed. Where the interpreter it was started with has no engine, it replaces itself by one that has. Keep
this file free of syntax and imports that Python 3.9 lacks: macOS's own is that old.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [str(ROOT / name) for name in ("protocol", "clients/python", "bridge")]
OLDEST = (3, 11)
NEWER = ("python3.13", "python3.12", "python3.11", "python3.14")


def main() -> int:
    """Become the bridge; return only where it ran in this process, or nothing could be found."""
    environment = dict(os.environ)
    if all(Path(folder).is_dir() for folder in PACKAGES):
        sys.path[:0] = PACKAGES
        # Its workers are processes of their own, and so may be the interpreter that takes over.
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"] = os.pathsep.join([*PACKAGES, *([rest] if rest else [])])
    if sys.version_info < OLDEST:
        return _run_newer(environment)
    if PathFinder.find_spec("vlmd_bridge") is not None:
        from vlmd_bridge.cli.main import main as run
        from vlmd_bridge.cli.main import missing_modules

        if not missing_modules():
            return run(["mlx-bridge"])
    if PathFinder.find_spec("vlmd") is None:
        return _fatal(f"vlmd is not installed in {sys.prefix}. Run: pip install 'vlmd[mlx]'")
    from vlmd._discovery import find_command
    from vlmd_protocol.errors import DaemonNotFoundError

    try:
        words = find_command(environment=environment, environments=[ROOT / ".venv"])
    except DaemonNotFoundError as error:
        return _fatal(str(error))
    # The working folder is the host app's: what stands in it must not shadow modules.
    return _become([*words, "mlx-bridge"], {**environment, "PYTHONSAFEPATH": "1"})


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    os.execve(command[0], command, environment)


def _run_newer(environment: dict[str, str]) -> int:
    """Start again in the first Python that is new enough to look for the right one."""
    named = environment.get("VLMD_PYTHON") or environment.get("ESCRIBANO_PYTHON_PATH")
    for python in (named, str(ROOT / ".venv" / "bin" / "python"), *map(shutil.which, NEWER)):
        if python and _is_new_enough(python):
            _become([python, str(Path(__file__).resolve())], environment)
    version = ".".join(map(str, sys.version_info[:3]))
    return _fatal(
        f"vlmd needs Python 3.11 or later; this is {version}, {sys.executable}. Name one: ESCRIBANO_PYTHON_PATH"
    )


def _is_new_enough(python: str) -> bool:
    # Tried, not believed: a version manager's shim may be there and yet start nothing.
    try:
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _fatal(message: str) -> int:
    sys.stderr.write(f"[MLX] error: {message}\n")
    print(json.dumps({"status": "fatal", "error": message, "code": "daemon_not_found"}), flush=True)
    return 4


if __name__ == "__main__":
    sys.exit(main())
