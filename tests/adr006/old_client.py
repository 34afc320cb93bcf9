"""The Node process of `old_client.mjs`, driven from a test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.adr006.bridge import SCRIPT, bridge_environment
from tests.support.daemon import FAKE

CLIENT = Path(__file__).with_name("old_client.mjs")
NODE = shutil.which("node")


class OldClient:
    """A host app with ADR-006's adapter. Its bridge is spawned with the first request."""

    def __init__(
        self,
        *,
        model: str = FAKE,
        folder: Path | None = None,
        script: Path = SCRIPT,
        start_timeout_ms: int = 60_000,
        socket_timeout_ms: int = 60_000,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        assert NODE is not None
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
        self.socket_path = self.folder / "s.sock"
        more = {"ESCRIBANO_PYTHON_PATH": sys.executable, **(environ or {})}
        self.process = subprocess.Popen(
            [NODE, str(CLIENT), str(script), str(start_timeout_ms), str(socket_timeout_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=bridge_environment(self.folder, self.socket_path, model, **more),
        )
        self.stderr: list[str] = []
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def send(self, **command: Any) -> None:
        """Give a command; `outcome` has to follow."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def outcome(self) -> dict[str, Any]:
        """Wait for what became of the oldest command."""
        assert self.process.stdout is not None
        data = self.process.stdout.readline()
        if not data:
            raise AssertionError(f"the client ended: {self.stderr}")
        return dict(json.loads(data))

    def run(self, **command: Any) -> dict[str, Any]:
        """Give a command and wait for its outcome."""
        self.send(**command)
        return self.outcome()

    def describe(self, paths: list[str]) -> dict[str, Any]:
        """Have the pictures described."""
        return self.run(images=[{"imagePath": path, "timestamp": 10.0 * i} for i, path in enumerate(paths)])

    def bridge_pid(self) -> int | None:
        """Process id of its bridge, None without one."""
        pid: int | None = self.run(bridge=True)["pid"]
        return pid

    def family(self) -> list[psutil.Process]:
        """Itself, its bridge, and the bridge's workers."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def quit(self) -> int:
        """Let the host app end; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)

    def close(self) -> None:
        """End it in any case and free what the test holds."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._drain.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _drain_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line.decode(errors="replace").rstrip())
