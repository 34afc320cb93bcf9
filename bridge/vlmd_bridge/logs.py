"""The daemon's log: `[MLX]` lines on stderr where somebody owns it, and always a rotating file.

Nothing here may stop or stall the daemon: a folder that cannot be written, a full disk, or an owner who does not read
its child's stderr costs log lines, which are counted, and nothing else.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
import time
from pathlib import Path
from typing import Final

_NAME: Final = "vlmd"

# 5 files of 2 MiB hold weeks of one line per job, and can be sent with a bug report.
MAX_FILE_BYTES: Final = 2 * 1024 * 1024
KEPT_FILES: Final = 4

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600

# A pipe that is writable takes this much at once (PIPE_BUF is at least 512, 4,096 on Linux), so that a write of one
# line neither blocks nor mixes with another process's.
_MAX_STDERR_LINE_BYTES: Final = 512 if not hasattr(select, "PIPE_BUF") else select.PIPE_BUF

# Paths and messages of others stand in lines: a line feed among them must not start a line of its own.
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


class _FileFormatter(logging.Formatter):
    """``2026-02-22T10:00:00.123Z 4711 INFO message``; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{moment}.{int(record.msecs):03d}Z {record.process} {record.levelname}"
        line = f"{head} {record.getMessage().translate(_CONTROL)}"
        return line if record.exc_info is None else f"{line}\n{_indented(self.formatException(record.exc_info))}"


class _StderrFormatter(logging.Formatter):
    """``[MLX] message``, ADR-006's form."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        if record.levelno < logging.INFO:
            level = "debug: "
        text = f"[MLX] {level}{record.getMessage().translate(_CONTROL)}"
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {error}".translate(_CONTROL)
        return text


def _indented(text: str) -> str:
    return "\n".join(f"    {line.translate(_CONTROL)}" for line in text.splitlines())


class StderrHandler(logging.Handler):
    """Writes to descriptor 2 whole lines, or not at all where that would block."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of `record`."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")
            line = line[: _MAX_STDERR_LINE_BYTES - 1] + b"\n"
            # Not poll: macOS does not do it on every terminal device.
            _, writable, _ = select.select([], [2], [], 0)
            if writable:
                os.write(2, line)
        except (OSError, ValueError):
            # Nobody is left to read it (EPIPE), or the descriptor is closed.
            pass


class RotatingFileHandler(logging.Handler):
    """Appends to a file that several daemons may share, and moves it aside when it is full.

    The standard library's handler assumes one process: two of them would each move the other's new file. Here the
    mover holds `flock` on the file it moves, and everybody else notices that the path leads to another file.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_FILE_BYTES, kept_files: int = KEPT_FILES) -> None:
        super().__init__()
        self.path = path
        self.lost_lines = 0
        self._max_bytes = max_bytes
        self._kept_files = kept_files
        self._fd = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of `record`; a line that cannot be written is counted and told of by the next one."""
        try:
            line = f"{self.format(record)}\n"
            if self.lost_lines:
                line = f"{self.lost_lines} lines before this one could not be written\n{line}"
            data = line.encode("utf-8", "backslashreplace")
            self._follow()
            if os.fstat(self._fd).st_size + len(data) > self._max_bytes:
                self._rotate()
            # One write to a file opened for appending: lines of several processes do not mix.
            os.write(self._fd, data)
            self.lost_lines = 0
        except OSError:
            self.lost_lines += 1

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.path, flags, _FILE_MODE)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.fchmod(fd, _FILE_MODE)  # also one that was there before, or that a strange umask closed to us
        return fd

    def _follow(self) -> None:
        """Open the file anew where another process, or its user, moved or removed it."""
        if self._fd < 0 or not self._is_current():
            self._reopen()

    def _is_current(self) -> bool:
        try:
            at_path = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(at_path, os.fstat(self._fd))

    def _reopen(self) -> None:
        new = self._open()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = new

    def _rotate(self) -> None:
        # Not waiting for the lock: who has it is moving the file, and one line over the limit does no harm.
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if self._is_current():
            for number in range(self._kept_files, 0, -1):
                older = self._numbered(number)
                newer = self.path if number == 1 else self._numbered(number - 1)
                if newer.exists():
                    newer.replace(older)
        # Closing the old descriptor releases the lock.
        self._reopen()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def setup_logging(log_file: Path | None, *, stderr: bool, verbose: bool) -> Path | None:
    """Send what the logger ``vlmd`` gets to `log_file` and, with `stderr`, to descriptor 2.

    Returns:
        The file in use; None without `log_file`, or where it cannot be opened, of which a warning is logged.
    """
    logger = logging.getLogger(_NAME)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # The root logger belongs to whoever embeds this; without handlers of its own it would print everything twice.
    logger.propagate = False
    if stderr:
        handler = StderrHandler()
        handler.setFormatter(_StderrFormatter())
        logger.addHandler(handler)
    used: Path | None = None
    if log_file is not None:
        try:
            log_file.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            to_file = RotatingFileHandler(log_file)
        except OSError as error:
            logger.warning("no log file: %s: %s", log_file, error.strerror)
        else:
            to_file.setFormatter(_FileFormatter())
            logger.addHandler(to_file)
            used = log_file
    if not logger.handlers:
        # Without any, logging falls back to printing warnings on stderr, which may be a stranger's.
        logger.addHandler(logging.NullHandler())
    return used
