"""An owned daemon whose owner can be killed, and what is left of both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.support import owner
from tests.support.daemon import Connection
from vlmd_bridge.faults import VARIABLE
from vlmd_protocol.paths import ensure_folder, lock_path, new_owned_socket_path, socket_folder

_MARK = "VLMD_TEST_ROUND"


class OwnedDaemon:
    """A daemon with an owner of its own. Every process of theirs carries a mark, by which it is found."""

    def __init__(self, *, model: str, faults: str = "", folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._log_file = folder / f"{self.mark}.log"
        self._stderr_file = folder / f"{self.mark}.stderr"
        self.socket_path = new_owned_socket_path()
        ensure_folder(socket_folder())
        ready_read, ready_write = os.pipe()
        os.set_inheritable(ready_write, True)
        command = [sys.executable, "-P", "-m", "vlmd", "serve", "--socket", str(self.socket_path), "--model", model]
        command += [
            "--owned",
            "--ready-fd",
            str(ready_write),
            "--log-file",
            str(self._log_file),
            "--drain-timeout",
            "20",
        ]
        with self._stderr_file.open("wb") as stderr:
            self._owner = subprocess.Popen(
                [sys.executable, "-S", "-E", owner.__file__, *command],
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=(ready_write,),
                env=os.environ | {VARIABLE: faults, _MARK: self.mark, "VLMD_VERBOSE": "1"},
            )
        os.close(ready_write)
        self._ready = os.fdopen(ready_read)
        assert self._owner.stdout is not None
        self.pid = int(self._owner.stdout.readline())

    def wait_for(self, *statuses: str) -> None:
        """Read start-up lines until one of `statuses`."""
        for text in self._ready:
            if json.loads(text)["status"] in statuses:
                return
        raise AssertionError(f"the daemon ended before {statuses}")

    def connect(self) -> Connection:
        """Open a connection."""
        return Connection(self.socket_path)

    def status(self) -> dict[str, Any]:
        """Return the result of `status`."""
        with self.connect() as connection:
            return dict(connection.ask(1, "status")[0]["result"])

    @property
    def log(self) -> str:
        """What its log says, the workers' lines included."""
        return self._log_file.read_text()

    @property
    def stderr(self) -> str:
        """What it wrote to standard error, a fault that struck it among that."""
        return self._stderr_file.read_text()

    @property
    def owner_pid(self) -> int:
        """The process that is to be killed."""
        return self._owner.pid

    def processes(self) -> list[int]:
        """Return the processes that are left, the owner's among them."""
        mark = f"{_MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def files(self) -> list[Path]:
        """Return the files that are left."""
        return [path for path in (self.socket_path, lock_path(self.socket_path)) if os.path.lexists(path)]

    def kill(self, *, owner: bool) -> float:
        """SIGKILL the owner or the daemon; return when."""
        began_s = time.monotonic()
        os.kill(self._owner.pid if owner else self.pid, signal.SIGKILL)
        if owner:
            self._owner.wait()
        return began_s

    def close(self) -> None:
        """End whatever is left."""
        for pid in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                os.kill(pid, signal.SIGKILL)
        self._owner.wait()
        for path in self.files():
            path.unlink(missing_ok=True)
        self._ready.close()
        assert self._owner.stdout is not None
        self._owner.stdout.close()
