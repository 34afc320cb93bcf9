"""`vlmd describe --output`: results appended as NDJSON, and an interrupted run taken up where it ended.

A batch's lines go to the kernel in one write before the next batch is waited for, so that a killed process loses none
of them; they are synced to the disk at most every `SYNC_INTERVAL_S` and at the end, which is what a power cut can cost.
A pipe or a device is written and nothing more.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from vlmd import Image
from vlmd_protocol.errors import shorten
from vlmd_protocol.messages import FrameResult

# A sync costs milliseconds on an SSD and tens of them on a disk; frames are cheap enough to lose five seconds of.
SYNC_INTERVAL_S: Final = 5.0


class ResultsFileError(Exception):
    """The file cannot be written, or is not one that `vlmd describe --output` wrote."""


class ResultsFile:
    """An NDJSON file of results, open for appending and locked against a second writer. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open `path`, made if need be, cut off a torn last line, and read what it holds.

        Raises:
            ResultsFileError: it cannot be opened, another process writes it, or it holds something else.
        """
        self.path = path
        # By path and index, what the last line says when the file is opened: its number, and whether it is no failure.
        self._last: dict[tuple[str, int], tuple[int, bool]] = {}
        try:
            self._fd = os.open(path, _access(path) | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ResultsFileError(f"{path} cannot be opened for writing: {error.strerror}.") from None
        try:
            # A pipe or a device cannot be synced or cut and holds nothing of ours; /dev/full gives zeros without end.
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if self._regular:
                self._lock()
                self._read()
        except BaseException:
            os.close(self._fd)
            raise
        self._synced_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                self._sync()
            finally:
                os.close(self._fd)
        except OSError as failure:
            if error is None:
                raise ResultsFileError(
                    f"{self.path} cannot be synced to the disk: {failure.strerror}. Its last lines may be lost; the "
                    "same command describes what is missing."
                ) from None

    def missing(self, images: Sequence[Image]) -> list[Image]:
        """Return those of `images` that are to be described: the file holds no result of them, or last a failure.

        A picture is told by its path and its index. Results whose index is not asked for now, as after pictures were
        added before theirs, count each for one picture of their path that has no later line of its own.
        """
        asked = {_key(image) for image in images}
        others: defaultdict[str, list[int]] = defaultdict(list)
        for (path, index), (number, described) in self._last.items():
            if described and (path, index) not in asked:
                others[path].append(number)
        for lines in others.values():
            lines.sort()
        missing = []
        for image in images:
            number, described = self._last.get(_key(image), (0, False))
            if described:
                continue
            lines = others[str(image.path)]
            if lines and lines[-1] > number:
                lines.pop()
            else:
                missing.append(image)
        return missing

    def append(self, results: Sequence[FrameResult]) -> None:
        """Write `results`, a line each.

        Raises:
            ResultsFileError: the disk is full, or it cannot be written for another reason.
        """
        data = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            if time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
                self._sync()
                self._synced_at = time.monotonic()
        except OSError as error:
            kept = " What it holds is kept." if self._regular else ""
            raise ResultsFileError(f"{self.path} cannot be written: {error.strerror}.{kept}") from None

    def _sync(self) -> None:
        if self._regular:
            os.fsync(self._fd)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsFileError(f"Another `vlmd describe` writes {self.path}.") from None
        except OSError:
            # A file system without locks: nothing to protect it with.
            return

    def _read(self) -> None:
        decoder = msgspec.json.Decoder(FrameResult)
        complete_bytes = 0
        # A descriptor of its own: reading moves no position that appending would use.
        with open(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    self._check_torn(line, number)
                    break
                complete_bytes += len(line)
                if line.isspace():
                    continue
                try:
                    result = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                    raise ResultsFileError(
                        f"{self.path}, line {number} is no result of vlmd ({shorten(str(error))}). "
                        "Choose another file, or remove that line."
                    ) from None
                described = result.error is None and result.code is None
                self._last[result.image_path, result.index] = number, described
        if complete_bytes != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, complete_bytes)

    def _check_torn(self, line: bytes, number: int) -> None:
        """A process that ended while it wrote leaves the beginning of a result; anything else is not ours to cut."""
        start = b'{"index":'
        if line[: len(start)] != start[: len(line)]:
            raise ResultsFileError(
                f"{self.path}, line {number} is no result of vlmd, nor the beginning of one. Choose another file."
            )


def _key(image: Image) -> tuple[str, int]:
    assert image.index is not None
    return str(image.path), image.index


def _access(path: Path) -> int:
    """Return how to open `path`: who also reads a pipe keeps it open for itself, and is not told that its reader left.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        regular = True
    return os.O_RDWR if regular else os.O_WRONLY
