"""The daemon's processes: which is which, how much memory each holds over time, and what is left when all is over."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import psutil

Role: TypeAlias = Literal["daemon", "worker", "image process"]

_MODULES: dict[str, Role] = {"vlmd_bridge.engine.process": "worker", "vlmd_bridge.images.process": "image process"}

# A worker's memory is that of loading and of the first prompts until then.
SETTLED_S = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of one process: `at_s` after the start of the run, `age_s` after its own."""

    at_s: float
    role: Role
    pid: int
    age_s: float
    rss_bytes: int


def members(daemon_pid: int) -> dict[int, Role]:
    """Return the daemon and its children by process id; empty where it is gone."""
    found: dict[int, Role] = {}
    try:
        daemon = psutil.Process(daemon_pid)
        if daemon.status() == psutil.STATUS_ZOMBIE:
            return {}
        found[daemon_pid] = "daemon"
        children = daemon.children(recursive=True)
    except psutil.Error:
        return {}
    for child in children:
        if (role := role_of(child)) is not None:
            found[child.pid] = role
    return found


def role_of(process: psutil.Process) -> Role | None:
    """Return what `process` is for, by its command; None for a stranger or one that is gone."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return next((role for word in words if (role := _MODULES.get(word)) is not None), None)


class Sampler:
    """Samples the family's resident memory each `every_s` on a thread, until `stop`."""

    def __init__(self, daemon_pid: Callable[[], int | None], *, every_s: float = 1.0) -> None:
        self.samples: list[Sample] = []
        self._daemon_pid = daemon_pid
        self._every_s = every_s
        self._began_s = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            pid = self._daemon_pid()
            for member, role in members(pid).items() if pid is not None else ():
                try:
                    process = psutil.Process(member)
                    age_s, rss_bytes = time.time() - process.create_time(), process.memory_info().rss
                except psutil.Error:
                    continue
                self.samples.append(Sample(time.monotonic() - self._began_s, role, member, age_s, rss_bytes))


def growth(samples: Iterable[Sample], role: Role, duration_s: float, *, settled_s: float = SETTLED_S) -> float | None:
    """Return by which share the median of the last quarter of the run exceeds that of the second; None without either.

    Processes that are killed are compared at the same ages: only samples of processes older than `settled_s` count,
    and the faults of every quarter are the same, at the same times within it, so that lives are as long in each.
    """
    quarters: list[list[int]] = [[], [], [], []]
    for sample in samples:
        if sample.role == role and sample.age_s >= settled_s:
            quarters[min(3, int(4 * sample.at_s / duration_s))].append(sample.rss_bytes)
    if not quarters[1] or not quarters[3]:
        return None
    return statistics.median(quarters[3]) / statistics.median(quarters[1]) - 1


def peak_mb(samples: Iterable[Sample], role: Role) -> float:
    """Return the largest resident memory of `role` in megabytes."""
    return max((sample.rss_bytes for sample in samples if sample.role == role), default=0) / 1e6


def left_behind(folder: Path, known: Iterable[int]) -> list[str]:
    """Return what a run left: processes of `known` that live, sockets and half-written files in `folder`."""
    left = []
    for pid in known:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and _is_ours(process):
                left.append(f"process {pid}")
        except psutil.Error:
            continue
    left += [path.name for path in folder.iterdir() if path.is_socket() or path.suffix in (".tmp", ".part")]
    return left


def _is_ours(process: psutil.Process) -> bool:
    # A process id may meanwhile be somebody else's.
    return role_of(process) is not None or "vlmd" in process.cmdline()
