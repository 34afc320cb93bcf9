"""A worker process as the daemon holds it: exec'd, one socketpair, its stderr drained."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE
from typing import Generic, TypeVar

import anyio
import anyio.abc
import msgspec

from vlmd_bridge.workers.messages import Close, FramingError, Message, MessageBuffer, encode_message

_Incoming = TypeVar("_Incoming")

log = logging.getLogger("vlmd.worker")

_READ_BYTES = 64 * 1024

# What a crash report shows of a worker's stderr.
_LAST_LINES = 20
_MAX_LINE_BYTES = 4096

# A worker whose socketpair is at EOF is on its way out.
_EXIT_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How a worker ended: its return code (negative: the signal) and its last lines on stderr."""

    returncode: int
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        how = f"signal {-self.returncode}" if self.returncode < 0 else f"status {self.returncode}"
        lines = "; last lines: " + " / ".join(self.last_lines[-5:]) if self.last_lines else ""
        return f"ended with {how}{lines}"


class Child(Generic[_Incoming]):
    """One worker process. `run` is its whole life; `send` may be called at any time and never waits."""

    def __init__(
        self, module: str, *, arena_fd: int, incoming: object, on_message: Callable[[_Incoming], None]
    ) -> None:
        """Prepare, start nothing.

        Args:
            module: what ``python -m`` runs.
            arena_fd: descriptor of the arena, inherited.
            incoming: union of the message types the worker sends.
            on_message: called with each, from the daemon's event loop.
        """
        self.pid: int | None = None
        self._module = module
        self._arena_fd = arena_fd
        self._decoder: msgspec.msgpack.Decoder[_Incoming] = msgspec.msgpack.Decoder(incoming)
        self._on_message = on_message
        self._outgoing = bytearray()
        self._wake = anyio.Event()
        self._process: anyio.abc.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._stderr_done = anyio.Event()
        self._ended = anyio.Event()

    async def run(self, first: Message) -> Exit:
        """Start the process, send `first`, pass on what it says, and return how it ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._arena_fd)
            # -P: the working folder, the host app's, must not shadow modules.
            command = [sys.executable, "-P", "-m", self._module, f"--link-fd={fds[0]}", f"--arena-fd={fds[1]}"]
            ours.setblocking(False)
            self._process = await anyio.open_process(
                command, stdin=DEVNULL, stdout=None, stderr=PIPE, pass_fds=fds, env=_environment()
            )
        self.pid = self._process.pid
        self.send(first)
        stream = await anyio.abc.UNIXSocketStream.from_socket(ours)
        try:
            async with stream, anyio.create_task_group() as tasks:
                tasks.start_soon(self._drain_stderr)
                tasks.start_soon(self._write, stream)
                await self._read(stream)
                with anyio.move_on_after(_EXIT_GRACE_S):
                    await self._process.wait()
                self.kill()
                await self._process.wait()
                with anyio.move_on_after(_EXIT_GRACE_S):
                    await self._stderr_done.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.kill()
            with anyio.CancelScope(shield=True):
                await self._process.wait()
                await self._process.aclose()
            self._ended.set()
        return Exit(returncode=self._process.returncode or 0, last_lines=tuple(self._last_lines))

    def send(self, message: Message) -> None:
        """Queue a message. After the end of the process it goes nowhere."""
        self._outgoing += encode_message(message)
        self._wake.set()

    async def close(self, grace_s: float) -> None:
        """Ask the process to release its model and end; terminate, then kill it, only when it does not.

        On macOS, killing a process with a large wired model can strand its memory until reboot.
        """
        self.send(Close())
        for escalate in (None, self.terminate, self.kill):
            if escalate is not None:
                escalate()
            with anyio.move_on_after(grace_s):
                await self._ended.wait()
                return

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _read(self, stream: anyio.abc.SocketStream) -> None:
        buffer = MessageBuffer()
        try:
            while True:
                for payload in buffer.feed(await stream.receive(_READ_BYTES)):
                    self._on_message(self._decoder.decode(payload))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
        except (FramingError, msgspec.DecodeError) as error:
            log.error("%s sent what is no message (%s); ending it", self._module, error)
            self.kill()

    async def _write(self, stream: anyio.abc.SocketStream) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            data = bytes(self._outgoing)
            self._outgoing.clear()
            try:
                await stream.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # it is gone: `_read` sees the EOF

    async def _drain_stderr(self) -> None:
        # An unread pipe would stop the worker once it is full.
        assert self._process is not None
        assert self._process.stderr is not None
        partial = b""
        async for data in self._process.stderr:
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                self._note(line)
            partial = partial[-_MAX_LINE_BYTES:]
        self._note(partial)
        self._stderr_done.set()

    def _note(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip()
        if text:
            self._last_lines.append(text)
            log.debug("[%s %s] %s", self._module.split(".")[1], self.pid, text)


def _environment() -> dict[str, str]:
    # Nothing is ever downloaded by surprise, and a crash loses no line that was written.
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
