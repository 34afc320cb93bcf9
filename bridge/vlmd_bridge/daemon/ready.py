"""How start-up is told: the ready line on standard output, and typed lines on a spawner's descriptor."""

from __future__ import annotations

import json
import os
from typing import Any


class ReadyChannel:
    """Writes start-up lines. A spawner that is gone is no error.

    ADR-006's client waits for one line on standard output: ``{"status": "ready", …}`` after the model has loaded, or
    ``{"status": "fatal", …}``. A spawner that passed `ready_fd` also gets ``loading`` and ``bound``.
    """

    def __init__(self, ready_fd: int | None) -> None:
        self._ready_fd = ready_fd
        # Libraries that print must not disturb that one line: keep the real standard output to ourselves.
        self._stdout_fd: int | None = os.dup(1)
        os.dup2(2, 1)
        self._ended = False

    def progress(self, status: str, **fields: Any) -> None:
        """Tell the spawner that start-up goes on."""
        if self._ready_fd is not None and not self._ended:
            _write(self._ready_fd, {"status": status, **fields})

    def end(self, status: str, **fields: Any) -> None:
        """Tell how start-up ended; later calls say nothing."""
        if self._ended:
            return
        self._ended = True
        for fd in (self._stdout_fd, self._ready_fd):
            if fd is not None:
                _write(fd, {"status": status, **fields})
                os.close(fd)
        self._stdout_fd = self._ready_fd = None


def _write(fd: int, line: dict[str, Any]) -> None:
    known = {name: value for name, value in line.items() if value is not None}
    try:
        os.write(fd, json.dumps(known).encode() + b"\n")
    except OSError:
        return
