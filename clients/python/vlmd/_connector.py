"""From nothing to a connection: attach to a daemon, or start one."""

from __future__ import annotations

from pathlib import Path

from vlmd._breaker import Breaker
from vlmd._discovery import find_command
from vlmd._link import Box, Link
from vlmd._log import ClientLog
from vlmd._process import DaemonProcess, serve_command
from vlmd._runtime import Runtime
from vlmd._session import Answered, Broken, Refused
from vlmd._settings import SHARED_IDLE_TIMEOUT_S, Settings
from vlmd_protocol.codec import Malformed, decode_result
from vlmd_protocol.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    CrashLoopError,
    DeadlineError,
    ProtocolError,
    StartError,
    VlmdError,
)
from vlmd_protocol.limits import PROTOCOL_VERSION
from vlmd_protocol.messages import ClientInfo, HelloParams, HelloResult
from vlmd_protocol.paths import check_folder, check_socket, ensure_folder, new_owned_socket_path, socket_folder

# How long an owned daemon may take to end by itself, and after SIGTERM: its own limit for draining is 10 s, but all
# its work is ours, and was cancelled with the connection.
DRAIN_S = 5.0
TERM_S = 5.0

# Between two looks at a shared socket whose daemon is just starting or just ending.
_RETRY_S = 0.05


class Connector:
    """Makes connections, one after the other; the caller sees to it that `connect` does not run twice at once."""

    def __init__(self, runtime: Runtime, settings: Settings, log: ClientLog) -> None:
        self.process: DaemonProcess | None = None
        self._runtime = runtime
        self._settings = settings
        self._log = log
        self._breaker = Breaker()
        self._command: list[str] | None = None
        self._socket: Path | None = None
        self._aborted = False

    async def connect(self, until_s: float) -> Link:
        """Return a connection that has said `hello`.

        Raises:
            CrashLoopError: the daemon crashed too often.
            DaemonNotFoundError: no command starts one.
            StartError: it ended before it answered.
            ConnectError: nobody answers, and none is to be started.
            UnsafeSocketError: the socket is not ours alone.
            DeadlineError: it does not answer in time, or the clock reached `until_s`.
            ProtocolError: what answers speaks another protocol.
            ClosedError: the client was closed meanwhile.
        """
        if self._breaker.is_loop(self._runtime.now_s()):
            tail = self.process.tail() if self.process is not None else ""
            raise CrashLoopError(f"The daemon crashed too often to be started once more.{tail}")
        if self._settings.socket is None:
            return await self._connect_owned(until_s)
        if self._settings.ownership == "attached":
            return await self._greet(self._settings.socket, until_s)
        return await self._connect_shared(self._settings.socket, until_s)

    def note_crash(self) -> None:
        """Count a connection that was lost."""
        self._breaker.note(self._runtime.now_s())

    def delay_s(self) -> float:
        """Return how long to wait before the next `connect`."""
        return self._breaker.delay_s(self._runtime.now_s())

    async def explain(self, error: VlmdError) -> VlmdError:
        """Return why a connection was lost, with what the daemon's process tells about it."""
        process = self.process
        if process is None or process.startup.running or not isinstance(error, ConnectionLostError):
            return error
        await process.last_words()
        if process.startup.fatal is not None:
            return _with_tail(process.startup.fatal, process)
        return ConnectionLostError(f"{error} The daemon (pid {process.pid}) {process.exit_status}.{process.tail()}")

    def abort(self) -> None:
        """Make a `connect` that runs give up."""
        self._aborted = True
        if self.process is not None:
            self.process.changed.set()

    async def stop(self) -> None:
        """End what this client started and owns."""
        if self.process is not None:
            await self.process.stop(DRAIN_S, TERM_S)

    async def _connect_owned(self, until_s: float) -> Link:
        if self.process is not None and self._socket is not None and self.process.alive:
            # The connection went, the daemon did not: perhaps it is about to. Or whoever had it started could not wait
            # for the end of that.
            try:
                if not self.process.startup.over:
                    await self._bound(self.process, until_s)
                return await self._greet(self._socket, until_s)
            except (ConnectError, ConnectionLostError):
                await self.process.stop(DRAIN_S, TERM_S)
        self._socket = new_owned_socket_path()
        ensure_folder(self._socket.parent)
        process = await self._spawn(self._socket, owned=True)
        try:
            await self._bound(process, until_s)
            return await self._greet(self._socket, until_s)
        except ConnectionLostError as error:
            self.note_crash()
            raise await self.explain(error) from None

    async def _connect_shared(self, path: Path, until_s: float) -> Link:
        stays_until_s = self._runtime.now_s() + self._settings.timeouts.start_s
        while True:
            try:
                return await self._greet(path, until_s)
            except (ConnectError, ConnectionLostError) as error:
                # Nobody there, or its idle exit came between our connection and its answer.
                if self._runtime.now_s() >= stays_until_s:
                    raise ConnectError(f"No daemon stays at {path}: {error}") from error
            if path.parent == socket_folder():
                ensure_folder(path.parent)
            process = await self._spawn(path, owned=False)
            await self._bound(process, until_s)
            try:
                return await self._greet(path, until_s)
            except (ConnectError, ConnectionLostError) as error:
                if not process.startup.running:  # else the winner has just gone, and the next look finds another
                    self.note_crash()
                    raise await self.explain(error) from None
            await self._runtime.sleep(_RETRY_S)

    async def _spawn(self, path: Path, *, owned: bool) -> DaemonProcess:
        if self._command is None:
            settings = self._settings
            self._command = await self._runtime.in_thread(
                lambda: find_command(settings.command, settings.python, needs_engine=_needs_engine(settings.model))
            )
        if self._aborted:
            raise ClosedError("The client was closed.")
        idle_timeout_s = None if owned else SHARED_IDLE_TIMEOUT_S
        command = serve_command(self._command, path, self._settings.model, self._settings.text_model, idle_timeout_s)
        if self.process is not None:
            await self.process.stop(DRAIN_S, TERM_S)
        self.process = process = DaemonProcess(self._runtime, command, owned=owned, log=self._log)
        self._log(f"Started daemon {process.pid} at {path}")
        return process

    async def _bound(self, process: DaemonProcess, until_s: float) -> None:
        """Wait until the daemon's socket answers, or another daemon holds it."""
        startup = process.startup
        limit_s = self._settings.timeouts.start_s
        while not (startup.bound or startup.running):
            seen = startup.news()
            if self._aborted:
                raise ClosedError("The client was closed.")
            if startup.fatal is not None:
                raise _with_tail(startup.fatal, process)
            if startup.over:
                await process.last_words()
                self.note_crash()
                raise StartError(f"The daemon {process.exit_status} before it was ready.{process.tail()}")
            if self._runtime.now_s() >= process.heard_s + limit_s:
                await process.stop(0.0, TERM_S)
                message = f"The daemon was not ready, nor made progress, within {limit_s:g} s.{process.tail()}"
                raise DeadlineError(message, phase="start")
            if self._runtime.now_s() >= until_s:  # it starts for whoever asks next
                raise DeadlineError("The daemon was not ready in time.", phase="start")
            process.changed.clear()
            if startup.news() == seen:  # else news came between the checks and the `clear`
                await process.changed.wait(min(until_s, process.heard_s + limit_s))

    async def _greet(self, path: Path, until_s: float) -> Link:
        """Connect and say `hello`."""
        try:
            if path.parent == socket_folder():
                check_folder(path.parent)
            check_socket(path)
        except FileNotFoundError:
            raise ConnectError(f"Nobody answers at {path}: there is no socket.") from None
        until_s = min(until_s, self._runtime.now_s() + self._settings.timeouts.connect_s)
        link = await Link.open(self._runtime, path, until_s)
        try:
            link.hello = await self._hello(link, path, until_s)
        except BaseException:
            link.close(ConnectionLostError("The daemon did not say hello."))
            raise
        return link

    async def _hello(self, link: Link, path: Path, until_s: float) -> HelloResult:
        from vlmd_bridge import __version__

        box = Box(self._runtime)
        link.post("hello", HelloParams(client=ClientInfo(name="vlmd-python", version=__version__)), box)
        await link.flush(until_s)
        while True:
            match await box.next(until_s):
                case None:
                    limit_s = self._settings.timeouts.connect_s
                    message = f"The daemon at {path} did not answer hello within {limit_s:g} s."
                    raise DeadlineError(message, phase="connect")
                case Broken(error):
                    raise error
                case Refused(error=error):
                    if error.code == "unsupported_protocol":
                        raise ProtocolError(f"The daemon at {path} refused: {error}") from error
                    raise error
                case Answered(reply=reply):
                    break
                case _:
                    continue
        try:
            hello = decode_result(reply, HelloResult)
        except Malformed as error:
            raise ProtocolError(f"What answers at {path} is no vlmd daemon: {error}") from None
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"The daemon at {path} ({hello.version}) speaks protocol {hello.protocol}, this client "
                f"{PROTOCOL_VERSION}. Stop it with `vlmd stop`, or use another socket."
            )
        return hello


def _needs_engine(model: str | None) -> bool:
    """Whether a daemon for `model` needs the engine's packages; the deterministic fake does not."""
    return model is None or model.partition(":")[0] != "fake"


def _with_tail(error: StartError, process: DaemonProcess) -> StartError:
    return StartError(f"{error}{process.tail()}", code=error.code)
