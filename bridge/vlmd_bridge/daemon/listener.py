"""The accept loop: own user only, rebinding when the path is taken, and an idle exit that loses nobody."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from vlmd_bridge.daemon.election import BoundSocket, Election, LostElection
from vlmd_protocol.errors import UnsafeSocketError

log = logging.getLogger("vlmd.listener")

# A client that found the path taken waits for us: it must come back within a second.
_REBIND_CHECK_S = 0.4

# What cleans up /tmp counts in days; the lock of a daemon that was killed is swept only when it is a minute old.
_REFRESH_S = 3600.0

# Out of descriptors: connections stay in the backlog until some are closed.
_NO_FDS_PAUSE_S = 0.1

# Connections of one turn of the event loop: those of a burst that are over already are gone before the next are taken,
# and do not count when there are too many.
_ACCEPTS_A_TURN = 16

_UCRED = struct.Struct("3i")  # pid, uid, gid


class Listener:
    """Accepts connections at the election's path and hands them to `serve`, each in its own task.

    `on_lost` is told why where another daemon has the path by now; there is nothing left to do but to stop.
    """

    def __init__(
        self,
        election: Election,
        serve: Callable[[anyio.abc.SocketStream], Awaitable[None]],
        on_lost: Callable[[str], None],
    ) -> None:
        self.connections = 0
        self._election = election
        self._serve = serve
        self._on_lost = on_lost
        self._tasks: anyio.abc.TaskGroup | None = None
        self._bound: BoundSocket | None = None
        self._accepting: anyio.CancelScope | None = None

    def bind(self) -> None:
        """Bind; connections wait in the backlog until `run`.

        Raises:
            UnsafeSocketError, OSError: as `Election.bind`.
        """
        self._bound = self._election.bind()

    async def run(self) -> None:
        """Accept until `stop`, then wait for the connections that are open."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            with anyio.CancelScope() as self._accepting:
                async with anyio.create_task_group() as accepting:
                    accepting.start_soon(self._accept)
                    accepting.start_soon(self._keep_path)
                    accepting.start_soon(self._keep_lock_fresh)

    def stop(self) -> None:
        """Take no more connections and remove the path; open connections go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._bound is not None:
            self._remove_path()
            self._bound.close()
            self._bound = None

    def leave_if_nobody_waits(self) -> bool:
        """Remove the path, then look into the backlog: True if nobody was there, else they are served and we stay.

        After the path is gone no client can reach the backlog, so what is in it now is all there will be.
        """
        if not self._remove_path():
            return False
        try:
            if self._accept_waiting() == 0:
                return True
        except OSError as error:
            # Without a descriptor nobody can tell whether somebody waits.
            log.warning("cannot look for connections: %s", error.strerror)
        self._rebind()
        return False

    def ensure_path(self) -> None:
        """Take the lock and bind the path again, if they are no longer ours."""
        if self._displaced:
            self._rebind()

    @property
    def _displaced(self) -> bool:
        return self._bound is not None and not (self._bound.reachable and self._election.holds_lock)

    def _remove_path(self) -> bool:
        """Remove the path; False where another daemon has its lock by now, and what lies there is left to it."""
        assert self._bound is not None
        try:
            self._election.ensure_lock()
        except LostElection:
            return False
        except (OSError, UnsafeSocketError) as error:
            log.warning("leaving without the lock: %s", error)  # which nobody else can have either
        self._bound.unlink()
        return True

    async def _accept(self) -> None:
        while True:
            assert self._bound is not None
            listening = self._bound.listening
            try:
                await anyio.wait_readable(listening)
            except anyio.ClosedResourceError:
                continue  # rebound meanwhile
            try:
                self._accept_waiting(_ACCEPTS_A_TURN)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("cannot accept a connection: %s", error.strerror)
                await anyio.sleep(_NO_FDS_PAUSE_S)

    def _accept_waiting(self, limit: int = sys.maxsize) -> int:
        assert self._bound is not None
        assert self._tasks is not None
        accepted = 0
        while accepted < limit:
            try:
                peer, _ = self._bound.listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            if peer_uid(peer) != os.geteuid():
                log.warning("refused a connection of another user")
                peer.close()
                continue
            accepted += 1
            self.connections += 1
            self._tasks.start_soon(self._serve_one, peer)
        return accepted

    async def _serve_one(self, peer: socket.socket) -> None:
        try:
            try:
                stream = await anyio.abc.UNIXSocketStream.from_socket(peer)
            except (OSError, ValueError):
                # It asks for the peer's name, which macOS has no more once both ends are shut: gone before its turn.
                peer.close()
                return
            async with stream:
                await self._serve(stream)
        finally:
            self.connections -= 1

    async def _keep_path(self) -> None:
        while True:
            await anyio.sleep(_REBIND_CHECK_S)
            if self._displaced:
                log.warning("%s or its lock was taken away; taking it back", self._election.path)
                self._rebind()

    async def _keep_lock_fresh(self) -> None:
        while True:
            self._election.refresh()
            await anyio.sleep(_REFRESH_S)

    def _rebind(self) -> None:
        assert self._bound is not None
        path = self._bound.path
        try:
            self._election.ensure_lock()
            if self._bound.reachable:
                return  # only the lock was gone
            fresh = self._election.bind()
        except LostElection as lost:
            self._on_lost(f"the lock of {path} was removed, and another daemon (pid {lost.pid}) has taken its place")
            return
        except (OSError, UnsafeSocketError) as error:
            log.error("cannot bind %s again: %s", path, error)
            return
        try:
            # Who reached the old socket before its path went is served; then the accept loop moves to the new one.
            self._accept_waiting()
        except OSError as error:
            # The new one took the last descriptor. The old one stays with those in it, until the next look.
            log.error("cannot bind %s again: %s", path, error)
            fresh.unlink()
            fresh.close()
            return
        anyio.notify_closing(self._bound.listening)
        self._bound.close()
        self._bound = fresh


def peer_uid(peer: socket.socket) -> int:
    """Return the effective uid of the process at the other end.

    On Linux by SO_PEERCRED. On macOS by LOCAL_PEERCRED, whose `struct xucred` begins with a version and the uid;
    that branch cannot be run on Linux.
    """
    if sys.platform == "darwin":
        # SOL_LOCAL, LOCAL_PEERCRED and the layout: sys/un.h, sys/ucred.h.
        data = peer.getsockopt(0, 1, 76)
        _version, uid = struct.unpack_from("=II", data)
        return int(uid)
    _pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
