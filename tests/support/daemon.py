"""A real daemon for a test: its own socket in a short folder, its log in memory, ended with the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from vlmd_bridge.faults import VARIABLE

FAKE = "fake"
START_TIMEOUT_S = 30.0


class Daemon:
    """A process of ``vlmd serve`` and connections to it."""

    def __init__(
        self,
        *options: str,
        model: str = FAKE,
        folder: Path | None = None,
        socket_path: Path | None = None,
        faults: str = "",
        **settings: object,
    ) -> None:
        """Start it, with `settings` by their variables and `faults` armed."""
        # pytest's own folders are too deep for a socket path.
        self.folder = folder or Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
        self.socket_path = socket_path or self.folder / "s.sock"
        ready_read, ready_write = os.pipe()
        # -P: like every spawner, not to import what stands in the working folder.
        command = [sys.executable, "-P", "-m", "vlmd", "serve", "--socket", str(self.socket_path), "--model", model]
        command += ["--log-file", str(self.folder / "log"), "--ready-fd", str(ready_write), *options]
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(ready_write,),
            env=os.environ | {VARIABLE: faults} | {f"VLMD_{name.upper()}": str(settings[name]) for name in settings},
        )
        os.close(ready_write)
        self.start_lines: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self._ready = os.fdopen(ready_read)
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def wait_for(self, *statuses: str) -> dict[str, Any]:
        """Read start-up lines until one of `statuses`."""
        for text in self._ready:
            line = json.loads(text)
            self.start_lines.append(line)
            if line["status"] in statuses:
                return dict(line)
        raise AssertionError(f"the daemon ended before {statuses}: {self.start_lines} {self.stderr}")

    def wait_bound(self) -> Daemon:
        """Wait until the socket answers."""
        self.wait_for("bound")
        return self

    def wait_ready(self) -> Daemon:
        """Wait until the model is loaded."""
        self.wait_for("ready")
        return self

    def connect(self) -> Connection:
        """Open a connection."""
        return Connection(self.socket_path)

    def ask(self, method: str, **params: Any) -> list[dict[str, Any]]:
        """Ask on a connection of its own; all lines of the answer."""
        with self.connect() as connection:
            return connection.ask(1, method, **params)

    def status(self) -> dict[str, Any]:
        """Return the result of `status`."""
        return dict(self.ask("status")[0]["result"])

    @property
    def engine_pid(self) -> int:
        """Process id of the engine worker."""
        return int(self.status()["models"][0]["pid"])

    @property
    def image_pid(self) -> int:
        """Process id of the image process."""
        return int(self.status()["imageProcesses"][0])

    def family(self) -> list[psutil.Process]:
        """The daemon and its workers."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def stop(self) -> int:
        """End it the usual way; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.close()

    def close(self) -> None:
        """End it in any case and free what the test holds."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._drain.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr, self._ready):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _drain_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line.decode(errors="replace").rstrip())


class Connection:
    """A blocking connection that speaks lines, as a client by hand would."""

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        try:
            _connect(self.socket, path, timeout_s)
        except OSError:
            self.socket.close()
            raise
        self._reader = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._reader.close()
        self.socket.close()

    def send(self, request_id: Any, method: str, **params: Any) -> None:
        """Send a request."""
        self.send_bytes(json.dumps({"id": request_id, "method": method, "params": params}).encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def half_close(self) -> None:
        """Say that nothing more will come."""
        self.socket.shutdown(socket.SHUT_WR)

    def line(self) -> dict[str, Any]:
        """Read one line."""
        data = self._reader.readline()
        if not data:
            raise EOFError("the daemon closed the connection")
        return dict(json.loads(data))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Read lines until the daemon closes."""
        for data in self._reader:
            yield dict(json.loads(data))

    def answer(self) -> list[dict[str, Any]]:
        """Read lines up to and with a terminal one."""
        lines = [self.line()]
        while not lines[-1].get("done"):
            lines.append(self.line())
        return lines

    def ask(self, request_id: Any, method: str, **params: Any) -> list[dict[str, Any]]:
        """Send a request and read its answer."""
        self.send(request_id, method, **params)
        return self.answer()


def _connect(connection: socket.socket, path: Path, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:  # on Linux: more connections wait than the daemon's queue holds
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)


def results(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of all lines."""
    return [result for line in lines for result in line.get("results", [])]


def eventually(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "the condition") -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.01)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of `processes` runs any more."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
