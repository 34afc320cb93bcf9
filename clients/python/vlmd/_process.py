"""A daemon that this client spawned: its pipes, its log lines and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from vlmd._runtime import Runtime
from vlmd._startup import Startup
from vlmd_protocol.errors import StartError

# Lines of the daemon's log that an error repeats.
TAIL_LINES = 50

# How often an end is looked for. A daemon's end has no descriptor on every platform.
_POLL_S = 0.01

# Its last line on the start-up descriptor and its exit follow the loss of the connection within moments.
_LAST_WORDS_S = 0.5

# A line of the log that is longer than this is cut: a daemon that writes no line feed fills no memory.
_MAX_LOG_LINE_BYTES = 64 * 1024

_READ_BYTES = 64 * 1024

Log = Callable[[str], None]


class DaemonProcess:
    """One spawned daemon.

    An owned one holds its standard input open through a pipe that only this process has: at its end, however it comes,
    the daemon ends. A shared one outlives this process: own session, no pipe to it but the start-up lines, and it is
    never signalled.

    Attributes:
        heard_s: when it last told how far its start is; at first, when it was spawned.
    """

    def __init__(self, runtime: Runtime, command: Sequence[str], *, owned: bool, log: Log) -> None:
        self.owned = owned
        self.startup = Startup()
        self.changed = runtime.signal()
        self._runtime = runtime
        self._log = log
        self._detached = False
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        # A shared daemon's stderr must stay writable after we are gone: an unlinked file, read only if the start fails.
        self._stderr_file: IO[bytes] | None = None if owned else tempfile.TemporaryFile()  # noqa: SIM115
        ready_read, ready_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, "--ready-fd", str(ready_write), *(["--owned"] if owned else [])],
                stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if self._stderr_file is None else self._stderr_file,
                pass_fds=(ready_write,),
                start_new_session=not owned,
                # Not the terminal's foreground group: Ctrl-C is for the host app, which may well go on.
                process_group=0 if owned else None,
                bufsize=0,
            )
        except OSError as error:
            os.close(ready_read)
            if self._stderr_file is not None:
                self._stderr_file.close()
            raise StartError(f"Cannot run {command[0]}: {error.strerror}.") from error
        finally:
            os.close(ready_write)
        self.pid = self._process.pid
        self.heard_s = runtime.now_s()
        self._ready_fd = ready_read
        runtime.background(self._follow_startup, "startup")
        self._log_over = self._process.stderr is None
        if not self._log_over:
            runtime.background(self._follow_log, "log")

    @property
    def alive(self) -> bool:
        """Whether it runs; reaps it if not."""
        return self._process.poll() is None

    @property
    def exit_status(self) -> str:
        """How it ended, in words."""
        code = self._process.poll()
        if code is None:
            return "still runs"
        if code >= 0:
            return f"ended with status {code}"
        return f"was ended by {signal.Signals(-code).name}"

    def tail(self) -> str:
        """Return its last log lines, indented under a heading, or nothing."""
        lines = list(self._tail)
        if self._stderr_file is not None and not self._stderr_file.closed:
            size = self._stderr_file.seek(0, os.SEEK_END)
            self._stderr_file.seek(max(0, size - _MAX_LOG_LINE_BYTES))
            lines = self._stderr_file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        return "".join(["\nIts last log lines:", *(f"\n  {line}" for line in lines)]) if lines else ""

    async def wait(self, until_s: float) -> bool:
        """Return whether it ended before the clock reached `until_s`."""
        while self.alive:
            if self._runtime.now_s() >= until_s:
                return False
            await self._runtime.sleep(_POLL_S)
        return True

    async def last_words(self) -> None:
        """Give a daemon that just ended, or is about to, a moment for its end, its reason and its log to be seen."""
        until_s = self._runtime.now_s() + _LAST_WORDS_S
        while (self.alive or not self.startup.over or not self._log_over) and self.startup.fatal is None:
            if self._runtime.now_s() >= until_s:
                return
            await self._runtime.sleep(_POLL_S)

    async def stop(self, drain_s: float, term_s: float) -> None:
        """End an owned daemon: by the end of its standard input, then SIGTERM, then SIGKILL."""
        if not self.owned:
            self.detach()
            return
        self._close_stdin()
        # One that was not bound yet has nothing to drain, and may not yet look at its standard input.
        if self.startup.bound and await self.wait(self._runtime.now_s() + drain_s):
            return
        self._process.terminate()
        if await self.wait(self._runtime.now_s() + term_s):
            return
        self._process.kill()
        await self._runtime.in_thread(self._process.wait)

    def stop_now(self, term_s: float) -> None:
        """Do the same without a runtime, for a client that was forgotten or an interpreter that ends."""
        if not self.owned:
            self.detach()
            return
        self._close_stdin()
        if not self.alive:
            return
        self._process.terminate()
        try:
            self._process.wait(term_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def detach(self) -> None:
        """Let a shared daemon go its own way."""
        if self._stderr_file is not None:
            self._stderr_file.close()
        if self.alive and not self._detached:
            self._detached = True
            # It is our child all the same: should it end before we do, this thread reaps it.
            threading.Thread(target=self._process.wait, name="vlmd reaper", daemon=True).start()

    def forsake(self) -> None:
        """In a forked child: let go of the parent's pipes, so that the daemon still notices the parent's end."""
        self._close_stdin()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process.returncode = 0  # not our child; Popen must neither wait for it nor warn

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _follow_startup(self) -> None:
        fd = self._ready_fd
        try:
            while not self.startup.over:
                await self._runtime.readable(fd)
                data = os.read(fd, _READ_BYTES)
                self.heard_s = self._runtime.now_s()
                for line in self.startup.receive(data):
                    if line.status == "loading":
                        share = "" if line.fraction is None else f" {line.fraction:.0%}"
                        self._log(f"Daemon {self.pid}: {line.stage or 'loading'}{share}")
                self.changed.set()
        finally:
            self.startup.over = True
            self.changed.set()
            os.close(fd)

    async def _follow_log(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        rest = b""
        try:
            while True:
                await self._runtime.readable(pipe.fileno())
                data = os.read(pipe.fileno(), _READ_BYTES)
                *lines, rest = (rest + data).split(b"\n")
                if not data or len(rest) > _MAX_LOG_LINE_BYTES:
                    lines.append(rest)
                    rest = b""
                for line in lines:
                    if line:
                        self._note_log(line.decode("utf-8", "replace"))
                if not data:
                    return
        finally:
            self._log_over = True
            pipe.close()

    def _note_log(self, line: str) -> None:
        self._tail.append(line)
        self._log(line)


def serve_command(
    base: Sequence[str], socket: Path, model: str | None, text_model: str | None, idle_timeout_s: float | None
) -> list[str]:
    """Return the command line of a daemon."""
    command = [*base, "serve", "--socket", str(socket)]
    if model is not None:
        command += ["--model", model]
    if text_model is not None:
        command += ["--text-model", text_model]
    if idle_timeout_s is not None:
        command += ["--idle-timeout", f"{idle_timeout_s:g}"]
    return command
