"""`scripts/mlx_bridge.py` for a test, spawned as ADR-006's adapter does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.support.daemon import FAKE, Connection

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "mlx_bridge.py"


def bridge_environment(folder: Path, socket_path: Path, model: str | None = FAKE, **more: str) -> dict[str, str]:
    """Return an environment in which nothing of the user's own counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLMD_", "ESCRIBANO_"))}
    own = {"VLMD_LOG_FILE": str(folder / "log"), "ESCRIBANO_MLX_SOCKET_PATH": str(socket_path)}
    config = {"XDG_CONFIG_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return {**kept, **own, **config, **({} if model is None else {"ESCRIBANO_VLM_MODEL": model}), **more}


class Bridge:
    """A bridge process: standard input at its end, the start-up line on standard output, the log on stderr."""

    def __init__(
        self,
        *,
        model: str | None = FAKE,
        folder: Path | None = None,
        socket_path: Path | None = None,
        python: str = sys.executable,
        script: Path = SCRIPT,
        cwd: Path = Path("/"),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
        self.socket_path = socket_path or self.folder / "s.sock"
        environment = bridge_environment(self.folder, self.socket_path, model, **(environ or {}))
        # The adapter's `existsSync` and `unlinkSync`.
        self.socket_path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
        )
        self.stderr: list[str] = []
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def start_line(self) -> dict[str, Any]:
        """Read the one line on standard output."""
        assert self.process.stdout is not None
        data = self.process.stdout.readline()
        if not data:
            raise AssertionError(f"the bridge said nothing: {self.stderr}")
        return dict(json.loads(data))

    def wait_ready(self) -> Bridge:
        """Wait until it says that it is ready."""
        line = self.start_line()
        assert line["status"] == "ready", line
        return self

    def connect(self) -> Connection:
        """Open a connection."""
        return Connection(self.socket_path)

    def family(self) -> list[psutil.Process]:
        """The bridge and its workers."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def stop(self) -> int:
        """End it as the adapter does; its exit status."""
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        """End it in any case and free what the test holds."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._drain.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _drain_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line.decode(errors="replace").rstrip())


def until_done(connection: Connection, request_id: int, method: str, **params: Any) -> list[dict[str, Any]]:
    """Ask as the adapter does: every line is the reply, only `done` ends it, what stands on that line is thrown away.

    Raises:
        RuntimeError: a line had a truthy `error`, its text.
    """
    connection.send(request_id, method, **params)
    lines: list[dict[str, Any]] = []
    while True:
        line = connection.line()
        if line.get("error"):
            raise RuntimeError(line["error"])
        if line.get("done"):
            return lines
        lines.append(line)
