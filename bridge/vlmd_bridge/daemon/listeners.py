"""The sockets of one daemon: each has its own lock and dialect; they are bound, stopped and left together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.abc

from vlmd_bridge.daemon.election import Election
from vlmd_bridge.daemon.listener import Listener
from vlmd_protocol.dialect import Dialect
from vlmd_protocol.paths import is_owned_socket, lock_path

# Serves one connection in the dialect of the socket that it came by.
Serve: TypeAlias = Callable[[Dialect, anyio.abc.SocketStream], Awaitable[None]]


class Listeners:
    """Holds the lock of every path from construction until `close`."""

    def __init__(self, dialects: Mapping[Path, Dialect]) -> None:
        """Take the locks.

        Raises:
            LostElection, UnsafeSocketError: as `Election`; no lock is kept then.
        """
        self._elections: list[tuple[Election, Dialect]] = []
        self._listeners: list[Listener] = []
        try:
            for path, dialect in dialects.items():
                self._elections.append((Election(path), dialect))
        except BaseException:
            self.close()
            raise

    @property
    def connections(self) -> int:
        """Open connections of all sockets."""
        return sum(listener.connections for listener in self._listeners)

    def bind(self, serve: Serve, on_lost: Callable[[str], None]) -> None:
        """Bind every path; connections wait in the backlog until `run`. `on_lost` as for `Listener`.

        Raises:
            UnsafeSocketError, OSError: as `Election.bind`; no path is left behind then.
        """
        self._listeners = [
            Listener(election, partial(serve, dialect), on_lost) for election, dialect in self._elections
        ]
        try:
            for listener in self._listeners:
                listener.bind()
        except BaseException:
            self.stop()
            raise

    async def run(self) -> None:
        """Accept until `stop`, then wait for the connections that are open."""
        async with anyio.create_task_group() as tasks:
            for listener in self._listeners:
                tasks.start_soon(listener.run)

    def stop(self) -> None:
        """Take no more connections and remove the paths; open connections go on."""
        for listener in self._listeners:
            listener.stop()

    def leave_if_nobody_waits(self) -> bool:
        """Remove the paths: True if nobody was on the way to any of them, else all are there again."""
        nobody = [
            listener.leave_if_nobody_waits() for listener in self._listeners
        ]  # all leave before one answer counts
        if all(nobody):
            return True
        for listener in self._listeners:
            listener.ensure_path()
        return False

    def close(self) -> None:
        """Give the locks up."""
        for election, _ in self._elections:
            election.close()


def private_leftovers(paths: Iterable[Path]) -> list[Path]:
    """Return what a daemon that ends without `stop` and `close` leaves of `paths` that nobody else will ever use."""
    return [left for path in paths if is_owned_socket(path) for left in (path, lock_path(path))]
