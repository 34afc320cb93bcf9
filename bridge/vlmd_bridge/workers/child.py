"""A worker process as the daemon holds it: exec'd, one socketpair, its stderr drained."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE
from typing import Generic, TypeVar

import anyio
import anyio.abc
import msgspec

from vlmd_bridge.faults import VARIABLE, installed
from vlmd_bridge.workers.framing import FramingError, MessageBuffer, encode_message
from vlmd_bridge.workers.messages import STACKS_SIGNAL, Close, Message

# What ``python -m`` runs.
_MODULES = {"worker": "vlmd_bridge.engine.process", "image": "vlmd_bridge.images.process"}

_Incoming = TypeVar("_Incoming")

log = logging.getLogger("vlmd.worker")

_READ_BYTES = 64 * 1024

# What a crash report shows of a worker's stderr: enough for the stacks of its threads.
_LAST_LINES = 40
_SHOWN_LINES = 5
_MAX_LINE_BYTES = 4096

# A worker whose socketpair is at EOF is on its way out, see `workers.orphan`. What it does not heed of that within this
# time, it is sent: SIGTERM, and after as long again SIGKILL.
_EXIT_GRACE_S = 2.0

# Between asking a worker that hangs for its stacks, and ending it. Writing them takes milliseconds.
_STACKS_S = 0.3
_HUNG_GRACE_S = 0.3

# A grandchild may hold standard error open.
_STDERR_GRACE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How a worker ended: its return code (negative: the signal) and its last lines on stderr."""

    returncode: int
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        how = f"signal {-self.returncode}" if self.returncode < 0 else f"status {self.returncode}"
        lines = "; last lines: " + " / ".join(self.last_lines[-_SHOWN_LINES:]) if self.last_lines else ""
        return f"ended with {how}{lines}"

    @property
    def report(self) -> str:
        """The same with all the lines there are, for the log."""
        return f"{self}" if len(self.last_lines) <= _SHOWN_LINES else f"{self}; all: {' / '.join(self.last_lines)}"


class Child(Generic[_Incoming]):
    """One worker process. `run` is its whole life; `send` may be called at any time and never waits."""

    def __init__(self, place: str, *, arena_fd: int, incoming: object, on_message: Callable[[_Incoming], None]) -> None:
        """Prepare, start nothing.

        Args:
            place: which kind of process, as the fault points name it.
            arena_fd: descriptor of the arena, inherited.
            incoming: union of the message types the worker sends.
            on_message: called with each, from the daemon's event loop.
        """
        self.pid: int | None = None
        self._place = place
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
        """Start the process, send `first`, pass on what it says, and return how it ended.

        A process that cannot be started, for want of descriptors or memory, counts as one that has ended.
        """
        try:
            stream = await self._start()
        except OSError as error:
            self._ended.set()
            return Exit(returncode=os.EX_OSERR, last_lines=(f"it could not be started: {error.strerror}",))
        self.send(first)
        assert self._process is not None
        try:
            async with stream, anyio.create_task_group() as tasks:
                tasks.start_soon(self._drain_stderr)
                tasks.start_soon(self._write, stream)
                await self._read(stream)
                await stream.aclose()
                await self._insist(self._process.wait, _EXIT_GRACE_S, _EXIT_GRACE_S)
                with anyio.move_on_after(_STDERR_GRACE_S):
                    await self._stderr_done.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.kill()
            with anyio.CancelScope(shield=True):
                await self._process.wait()
                await self._process.aclose()
            self.pid = None
            self._ended.set()
        return Exit(returncode=self._process.returncode or 0, last_lines=tuple(self._last_lines))

    async def _start(self) -> anyio.abc.UNIXSocketStream:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                faults, fault_fds = installed().handed_on(self._place)
                fds = (theirs.fileno(), self._arena_fd, *fault_fds)
                # -P: the working folder, the host app's, must not shadow modules.
                command = [sys.executable, "-P", "-m", _MODULES[self._place]]
                command += [f"--link-fd={fds[0]}", f"--arena-fd={fds[1]}", *faults]
                ours.setblocking(False)
                self._process = await anyio.open_process(
                    command,
                    stdin=DEVNULL,
                    stdout=None,
                    stderr=PIPE,
                    pass_fds=fds,
                    env=_environment(),
                    # Ctrl-C in a terminal, or a signal to the daemon's group, is for the daemon: it drains, then ends
                    # us.
                    start_new_session=True,
                )
            self.pid = self._process.pid
            return await anyio.abc.UNIXSocketStream.from_socket(ours)
        except BaseException:
            ours.close()
            raise

    def send(self, message: Message) -> None:
        """Queue a message. After the end of the process it goes nowhere."""
        self._outgoing += encode_message(message)
        self._wake.set()

    async def close(self, grace_s: float, term_s: float = _EXIT_GRACE_S) -> None:
        """Ask the process to release its model and end; terminate it after `grace_s`, kill it after `term_s` more.

        On macOS, killing a process with a large wired model can strand its memory until reboot.
        """
        self.send(Close())
        await self._insist(self._ended.wait, grace_s, term_s)

    async def end_hung(self) -> None:
        """End a process that shows no progress, once it has written where it stands."""
        self._signal(STACKS_SIGNAL)
        await anyio.sleep(_STACKS_S)
        await self.close(_HUNG_GRACE_S, _HUNG_GRACE_S)

    async def _insist(self, ended: Callable[[], Awaitable[object]], grace_s: float, term_s: float) -> None:
        """Wait for the end: `grace_s` first, `term_s` after SIGTERM, and then after SIGKILL."""
        for escalate, wait_s in ((None, grace_s), (self.terminate, term_s), (self.kill, _EXIT_GRACE_S)):
            if escalate is not None:
                escalate()
            with anyio.move_on_after(wait_s):
                await ended()
                return

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _read(self, stream: anyio.abc.SocketStream) -> None:
        buffer = MessageBuffer()
        try:
            while True:
                for payload in buffer.feed(await stream.receive(_READ_BYTES)):
                    self._on_message(self._decoder.decode(payload))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
        except (FramingError, msgspec.DecodeError) as error:
            log.error("%s %s sent what is no message (%s); ending it", self._place, self.pid, error)

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
            log.debug("[%s %s] %s", self._place, self.pid, text)


def _environment() -> dict[str, str]:
    # Nothing is ever downloaded by surprise, and a crash loses no line that was written.
    # Faults are handed on by argument, each only so often.
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return inherited | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
