"""``vlmd describe --output`` in a world of its own, restarted until it has described everything, and what it wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from tests.cli.command import Command
from tests.soak.family import Role, members, role_of
from vlmd_bridge.cli import exits
from vlmd_protocol.messages import FrameResult
from vlmd_protocol.paths import lock_path

# After which exit a run is worth another: some frames failed, the daemon was lost, its worker was killed as it loaded,
# or somebody killed the command.
_AGAIN = frozenset({exits.SOME_FAILED, exits.NO_DAEMON, exits.MODEL, -9})

# What a daemon that is asked to leave may take to drain.
_STOP_S = 30.0


class Described:
    """One output file, the daemon that it comes from, and every process that had a part in it."""

    def __init__(self, paths: Sequence[str], *, model: str, options: Sequence[str] = ()) -> None:
        self.starts = 0
        self.client: subprocess.Popen[bytes] | None = None
        self.seen: set[int] = set()
        self._command = Command()
        self.folder = self._command.folder
        self.output = self.folder / "results.jsonl"
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self._command.environment |= {
            # Whatever anybody leaves behind is left there.
            "TMPDIR": str(self.temporary),
            "VLMD_CACHE_FILE": str(self.folder / "results.sqlite"),
            "HF_HUB_OFFLINE": "1",
        }
        listed = self.folder / "paths"
        listed.write_text("".join(f"{path}\n" for path in paths))
        self._listed = listed
        self._words = [sys.executable, "-P", "-m", "vlmd", "describe", "--model", model, "--output", str(self.output)]
        self._words += ["--json", *options, "-"]

    @property
    def daemon_pid(self) -> int | None:
        """Process id of the daemon, None while there is none."""
        try:
            pid = int(lock_path(self._command.socket).read_text())
            return pid if "vlmd" in " ".join(psutil.Process(pid).cmdline()) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def processes(self) -> list[tuple[int, Role | str]]:
        """Return every process of this world that runs now, with its role."""
        found: list[tuple[int, Role | str]] = []
        if self.client is not None and self.client.poll() is None:
            found.append((self.client.pid, "client"))
        if (daemon := self.daemon_pid) is not None:
            found += members(daemon).items()
        self.seen.update(pid for pid, _ in found)
        return found

    def start(self) -> None:
        """Start the command."""
        self.starts += 1
        with self._listed.open("rb") as paths, (self.folder / "stderr").open("ab") as errors:
            self.client = subprocess.Popen(
                self._words, stdin=paths, stdout=subprocess.DEVNULL, stderr=errors, cwd=self.folder,
                env=self._command.environment,
            )  # fmt: skip

    def go_on(self) -> bool:
        """Start the command again where it has ended before the end; False once it has described everything.

        Raises:
            AssertionError: it ended in a way that no kill explains.
        """
        assert self.client is not None
        status = self.client.poll()
        if status is None:
            return True
        if status == exits.OK:
            return False
        assert status in _AGAIN, f"vlmd describe ended with status {status}: {self.last_words()}"
        self.start()
        return True

    def last_words(self) -> str:
        """Return the end of what the commands said."""
        return (self.folder / "stderr").read_text(errors="replace")[-2000:]

    def count(self) -> int:
        """Return how many lines the output file has."""
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def results(self) -> list[FrameResult]:
        """Return the lines of the output file."""
        lines = self.output.read_bytes().splitlines() if self.output.exists() else []
        return [msgspec.json.decode(line, type=FrameResult) for line in lines]

    def stop(self) -> list[str]:
        """Stop the daemon as its user would; return what is left behind."""
        self._command.run("stop", "--json")
        deadline_s = time.monotonic() + _STOP_S
        while (left := self._left()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return left

    def _left(self) -> list[str]:
        left = []
        for pid in self.seen:
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and (role_of(process) or "vlmd" in process.cmdline()):
                    left.append(f"process {pid}")
            except psutil.Error:
                continue
        left += [str(path) for path in self.temporary.rglob("*")]
        left += [path.name for path in self.folder.iterdir() if path.is_socket()]
        return left

    def close(self) -> None:
        """End what runs and remove the folder."""
        for pid, _ in self.processes():
            try:
                psutil.Process(pid).kill()
            except psutil.Error:
                continue
        if self.client is not None:
            self.client.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_results(results: Sequence[FrameResult], paths: Sequence[str]) -> tuple[dict[int, FrameResult], list[str]]:
    """Return the results without error by index, and what is wrong with them: missing, twice, or out of order.

    A frame that failed has a line of its own in the file; its later result stands behind those of the run before.
    """
    described = [result for result in results if result.error is None and result.code is None]
    retried = {result.index for result in results if result.error is not None or result.code is not None}
    problems = [
        f"frame {index} {count} times" for index, count in Counter(r.index for r in described).items() if count > 1
    ]
    missing = set(range(len(paths))) - {result.index for result in described}
    problems += [f"frame {index} missing" for index in sorted(missing)[:20]]
    problems += [f"frame {r.index} has {r.image_path}" for r in described if r.image_path != paths[int(r.index)]][:20]
    in_turn = [result.index for result in described if result.index not in retried]
    if in_turn != sorted(in_turn):
        problems.append("results are out of order")
    return {int(result.index): result for result in described}, problems


def text_of(result: FrameResult) -> tuple[object, ...]:
    """Return what a result says, without what a run adds to it."""
    return (
        result.index,
        result.image_path,
        result.timestamp,
        result.description,
        result.activity,
        result.apps,
        result.topics,
    )


def write_list(folder: Path, count: int, frames: Sequence[str]) -> list[str]:
    """Return `count` paths of files in `folder` that are the `frames` in turn, by hard links."""
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"{number:05d}.png"
        path.hardlink_to(frames[number % len(frames)])
        paths.append(str(path))
    return paths
