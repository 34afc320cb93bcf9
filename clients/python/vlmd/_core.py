"""What both clients are: one connection at a time, calls over it, and its end."""

from __future__ import annotations

import math
import os
import weakref
from typing import Literal, TypeVar

from vlmd._connector import TERM_S, Connector
from vlmd._link import Box, Link
from vlmd._log import ClientLog
from vlmd._runtime import Runtime
from vlmd._session import Answered, Broken, Refused
from vlmd._settings import Settings
from vlmd_protocol.codec import Malformed, decode_result
from vlmd_protocol.errors import ClosedError, ConnectionLostError, DeadlineError, ProtocolError, VlmdError
from vlmd_protocol.messages import (
    CacheParams,
    CacheResult,
    HelloResult,
    NoParams,
    PingResult,
    ShutdownResult,
    StatusResult,
    Wire,
)

_Result = TypeVar("_Result", bound=Wire)

_END_CHECK_S = 0.01

_REPEATABLE = ("ping", "status")


class ClientCore:
    """The procedures of a client, over any runtime. Used by many threads or tasks at once.

    Attributes:
        was_connected: a start that fails after this is a crash to recover from; before, the installation is broken.
    """

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self.runtime = runtime
        self.settings = settings
        self.log = ClientLog(settings.log)
        self.connector = Connector(runtime, settings, self.log)
        self.was_connected = False
        self._link: Link | None = None
        self._connecting = runtime.lock()
        self._closed = False
        self._ending = False
        self._pid = os.getpid()
        _cores.add(self)

    async def hello(self) -> HelloResult:
        """Return what the daemon said when this client connected."""
        hello = (await self.link()).hello
        assert hello is not None
        return hello

    async def ping(self) -> PingResult:
        """Ask whether it is alive."""
        return await self._call("ping", PingResult)

    async def status(self) -> StatusResult:
        """Ask how it is."""
        return await self._call("status", StatusResult)

    async def cache(self, action: Literal["info", "clear"]) -> CacheResult:
        """Look at its result store, or empty it."""
        return await self._call("cache", CacheResult, CacheParams(action=action))

    async def shutdown(self) -> ShutdownResult:
        """Tell it to drain and end."""
        result = await self._call("shutdown", ShutdownResult)
        self._ending = True
        return result

    async def link(self, until_s: float = math.inf) -> Link:
        """Return the connection, made anew if there is none.

        Raises:
            ClosedError: the client was closed, or this is a forked child.
            DeadlineError: there was none when the clock reached `until_s`; a daemon that starts goes on with that.
            VlmdError: as `Connector.connect` says.
        """
        self.check_open()
        if self._link is not None and self._link.lost is None and not self._ending:
            return self._link
        if not await self._connecting.acquire(until_s):
            raise DeadlineError("Another call had not connected in time.", phase="connect")
        try:
            return await self._connect(until_s)
        finally:
            self._connecting.release()

    def current_link(self) -> Link | None:
        """Return the connection if there is one, without making one."""
        return self._link if self._link is not None and self._link.lost is None else None

    async def explain(self, error: VlmdError) -> VlmdError:
        """Return the error that a caller sees for a lost connection."""
        return error if self._closed else await self.connector.explain(error)

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, where nothing of the client may be touched."""
        return self._pid != os.getpid()

    def check_open(self) -> None:
        """Refuse use after `close` or a fork.

        Raises:
            ClosedError: the one or the other.
        """
        if self.forked:
            raise ClosedError("This client belongs to the parent of this process. Make a new one after the fork.")
        if self._closed:
            raise _closed_error()

    async def close(self) -> None:
        """End the connection, and the daemon if it is owned."""
        if self._closed or self.forked:
            return
        self._closed = True
        self.connector.abort()
        if self._link is not None:
            self._link.close(_closed_error())
        await self._connecting.acquire(math.inf)
        try:
            await self.connector.stop()
        finally:
            self._connecting.release()

    def forget(self) -> None:
        """Do the same at once, without a runtime: nobody will call `close` any more."""
        if self.forked:
            return
        self._closed = True
        if self._link is not None:
            self._link.close(_closed_error())
        if self.connector.process is not None:
            self.connector.process.stop_now(TERM_S)

    def forsake(self) -> None:
        """In a forked child: let go of the parent's descriptors."""
        if self._link is not None:
            self._link.forsake()
        if self.connector.process is not None:
            self.connector.process.forsake()

    async def _connect(self, until_s: float) -> Link:
        self.check_open()
        await self._await_end(until_s)
        if self._link is None or self._link.lost is not None:
            if self._link is not None:
                self._note_loss(self._link)
                self._link = None
            self._link = await self.connector.connect(until_s)
            if self._closed:  # meanwhile, on another thread that waits for the lock
                self._link.close(_closed_error())
                raise _closed_error()
            self._ending = False
            self.was_connected = True
        return self._link

    async def _await_end(self, until_s: float) -> None:
        """After `shutdown`, wait for the old daemon's end: a call that follows is for the next one."""
        until_s = min(until_s, self.runtime.now_s() + self.settings.timeouts.connect_s)
        while self._ending and self._link is not None and self._link.lost is None:
            if self.runtime.now_s() >= until_s:
                return  # it still drains; it says itself what it no longer does
            await self.runtime.sleep(_END_CHECK_S)

    def _note_loss(self, link: Link) -> None:
        if isinstance(link.lost, ConnectionLostError) and not (self._ending or link.draining):
            self.connector.note_crash()

    async def _call(self, method: str, result_type: type[_Result], params: Wire | None = None) -> _Result:
        """Ask, and once more where an older connection turns out to be dead, as after a night.

        Only what changes nothing, and not on a connection made for this very call, whose end says something.

        Raises:
            VlmdError: as `link` says, or that there was no answer.
        """
        older = self.current_link() is not None
        try:
            return await self._call_once(method, result_type, params)
        except ConnectionLostError:
            if not older or method not in _REPEATABLE or self._closed:
                raise
            return await self._call_once(method, result_type, params)

    async def _call_once(self, method: str, result_type: type[_Result], params: Wire | None = None) -> _Result:
        link = await self.link()
        box = Box(self.runtime)
        request_id = link.post(method, NoParams() if params is None else params, box)
        limit_s = self.settings.timeouts.connect_s
        until_s = self.runtime.now_s() + limit_s
        try:
            await link.flush(until_s)
            while True:
                match await box.next(until_s):
                    case None:
                        message = f"The daemon did not answer {method} within {limit_s:g} s."
                        raise DeadlineError(message, phase="first_byte")
                    case Broken(error):
                        raise await self.explain(error)
                    case Refused(error=refusal):
                        raise refusal
                    case Answered(reply=reply):
                        return decode_result(reply, result_type)
                    case _:
                        continue
        except Malformed as error:
            violation = ProtocolError(f"The daemon's answer to {method} is of another form: {error}")
            link.close(violation)
            raise violation from None
        finally:
            link.cancel(request_id)


def _closed_error() -> ClosedError:
    return ClosedError("The client was closed.")


_cores: weakref.WeakSet[ClientCore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for core in list(_cores):
        core.forsake()


os.register_at_fork(after_in_child=_after_fork_in_child)
