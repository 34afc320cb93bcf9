"""Runs `vlmd` as a user does: a process of its own, with its own socket, configuration and log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# A command that needs longer hangs; loading the fake model takes under a second.
TIMEOUT_S = 60.0

# What would let the machine's own settings into a test.
_INHERITED = ("VLMD_", "ESCRIBANO_", "XDG_")


class Command:
    """`vlmd` in a private world: folder, socket, environment."""

    def __init__(self) -> None:
        # pytest's own folders are too deep for a socket path; mkdtemp makes it 0700, as the daemon asks.
        self.folder = Path(tempfile.mkdtemp(prefix="vlmd-c-", dir="/tmp"))
        self.socket = self.folder / "s.sock"
        self.log = self.folder / "vlmd.log"
        self.cache = self.folder / "cache" / "results.db"
        self.config = self.folder / "config.toml"
        self.config.write_text("")
        self._started: list[subprocess.Popen[str]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)},
            "VLMD_CONFIG": str(self.config),
            "VLMD_LOG_FILE": str(self.log),
            "VLMD_SOCKET": str(self.socket),
            "VLMD_CACHE_FILE": str(self.cache),
            "COLUMNS": "120",
        }

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `vlmd` with `arguments`."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlmd", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment,
            **options,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run it to its end, which must be `status`."""
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=TIMEOUT_S)
        assert process.returncode == status, f"{arguments}: {process.returncode}, not {status}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def lines(self, *arguments: str, stdin: str = "", status: int = 0) -> list[dict[str, Any]]:
        """Run it; the JSON lines on standard output."""
        return [json.loads(line) for line in self.run(*arguments, stdin=stdin, status=status).stdout.splitlines()]

    def close(self) -> None:
        """End what a failed test left, and the daemon, if one was started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        if self.socket.exists():
            self.run("stop")
        shutil.rmtree(self.folder)
