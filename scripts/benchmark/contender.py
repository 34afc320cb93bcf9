"""What takes part: something that turns paths of pictures into texts, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

SCRIPTS = Path(__file__).resolve().parent.parent

_END_S = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One turn: how long it took, loading left out, processor time of its processes, and the text for each frame."""

    seconds: float
    cpu_seconds: float
    texts: list[str]


class Contender(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str:
        """Its name in the table."""

    def ready(self) -> None:
        """Return when it has loaded.

        Raises:
            ContenderError: it did not start.
        """

    def describe(self, paths: Sequence[str]) -> Run:
        """Describe the pictures."""

    def rest(self) -> None:
        """Use no processor until the next turn."""

    def close(self) -> None:
        """End its processes."""


class ContenderError(Exception):
    """It cannot take part; the message says why."""


class Process:
    """A process group that stands still (SIGSTOP) between its turns: polling neighbours would spoil the others'."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: dict[str, str], pipes: bool = False) -> None:
        self._log = log
        self._stderr = log.open("wb")
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        self.popen: subprocess.Popen[str] = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=subprocess.PIPE if pipes else self._stderr,
            stderr=self._stderr,
            env={**os.environ, **environment},
            text=True,
            start_new_session=True,
        )

    def cpu_s(self) -> float:
        """Return the processor time that it and its children have used, seconds."""
        return tree_cpu_s(self.popen.pid)

    def wake(self) -> None:
        """Let it run."""
        os.killpg(self.popen.pid, signal.SIGCONT)

    def rest(self) -> None:
        """Stop it until `wake`."""
        os.killpg(self.popen.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it and whatever it started; nothing happens the second time."""
        if self.popen.poll() is None:
            self._end()
        for stream in (self.popen.stdin, self.popen.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _end(self) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGCONT)
            os.killpg(self.popen.pid, signal.SIGTERM)
            self.popen.wait(_END_S)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait(_END_S)

    def last_words(self) -> str:
        """Return the end of its log, for a message."""
        return self._log.read_bytes()[-600:].decode(errors="replace").strip()


class Loop:
    """A script that reads a JSON list of paths a line and answers each with seconds and texts."""

    def __init__(self, name: str, script: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        command = [sys.executable, str(SCRIPTS / script), *arguments]
        self.process = Process(command, log=log, environment={}, pipes=True)

    def ready(self) -> None:
        """Wait for its first line."""
        if self._readline() != "ready\n":
            raise ContenderError(f"{self.name} did not start: {self.process.last_words()}")

    def describe(self, paths: Sequence[str]) -> Run:
        """Describe the pictures."""
        answer = self.answer(paths)
        return Run(seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"], texts=answer["texts"])

    def answer(self, paths: Sequence[str]) -> dict[str, Any]:
        """Describe the pictures and return all that the script says of it.

        Raises:
            ContenderError: it ended.
        """
        self.process.wake()
        stdin = self.process.popen.stdin
        assert stdin is not None
        stdin.write(json.dumps(list(paths)) + "\n")
        stdin.flush()
        line = self._readline()
        if not line:
            raise ContenderError(f"{self.name} ended: {self.process.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rest(self) -> None:
        """Stop it."""
        self.process.rest()

    def close(self) -> None:
        """End it."""
        self.process.close()

    def _readline(self) -> str:
        assert self.process.popen.stdout is not None
        return self.process.popen.stdout.readline()


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and its children, seconds."""
    parent = psutil.Process(pid)
    return float(sum(sum(process.cpu_times()[:2]) for process in (parent, *parent.children(recursive=True))))
