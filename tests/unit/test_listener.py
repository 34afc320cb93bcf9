"""The accept loop, in this process: peers that are gone, no descriptor left, a lock that was removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.abc
import pytest

from vlmd_bridge.daemon.election import Election, LostElection
from vlmd_bridge.daemon.listener import Listener
from vlmd_protocol import paths

# Nothing here takes so long, on any machine.
LIMIT_S = 30.0


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-t-", dir="/tmp"))
    yield folder / "s.sock"
    shutil.rmtree(folder)


async def _echo(stream: anyio.abc.SocketStream) -> None:
    await stream.send(await stream.receive())


async def _ask(path: Path) -> bytes:
    """Return what comes back: nothing where the connection is closed."""
    async with await anyio.connect_unix(path) as stream:
        try:
            await stream.send(b"?")
            return await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""


@contextlib.asynccontextmanager
async def _running(path: Path, on_lost: Callable[[str], None] = pytest.fail) -> AsyncIterator[Listener]:
    election = Election(path)
    listener = Listener(election, _echo, on_lost)
    listener.bind()
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.run)
            await anyio.wait_all_tasks_blocked()
            yield listener
            listener.stop()
    assert listener.connections == 0
    election.close()


class _Nameless(socket.socket):
    """What macOS makes of a socket whose peer connected and closed."""

    def getpeername(self) -> NoReturn:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_peer_that_is_gone_before_its_turn_ends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    gone: list[socket.socket] = []

    def first_is_gone(listening: socket.socket) -> tuple[socket.socket, Any]:
        peer, address = accept(listening)
        if not gone:
            peer = _Nameless(fileno=peer.detach())
            gone.append(peer)
        return peer, address

    monkeypatch.setattr(socket.socket, "accept", first_is_gone)

    async def ask_twice() -> None:
        async with _running(path):
            assert await _ask(path) == b""
            assert await _ask(path) == b"?"

    anyio.run(ask_twice)
    assert gone[0].fileno() == -1


@pytest.mark.parametrize("look", [Listener.ensure_path, Listener.leave_if_nobody_waits])
def test_no_descriptor_left_to_take_the_last_ones_costs_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Listener], object]
) -> None:
    accept = socket.socket.accept

    def starved(listening: socket.socket) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    def take_the_path_away(listener: Listener) -> None:
        path.unlink()
        monkeypatch.setattr(socket.socket, "accept", starved)
        assert not look(listener)
        assert not path.exists()  # nobody is led to a socket that is closed
        monkeypatch.setattr(socket.socket, "accept", accept)
        listener.ensure_path()

    async def connect_before_and_after() -> None:
        async with _running(path) as listener:
            with socket.socket(socket.AF_UNIX) as early:
                early.connect(str(path))
                take_the_path_away(listener)
                assert await _ask(path) == b"?"
                early.sendall(b"!")
                await anyio.wait_readable(early)
                assert early.recv(1) == b"!"

    anyio.run(connect_before_and_after)


def test_a_removed_lock_is_taken_again_and_the_socket_stays(path: Path) -> None:
    async def remove_the_lock() -> None:
        async with _running(path) as listener:
            before = os.lstat(path)
            paths.lock_path(path).unlink()
            listener.ensure_path()
            with pytest.raises(LostElection):
                Election(path)
            assert os.path.samestat(os.lstat(path), before)

    anyio.run(remove_the_lock)


@pytest.mark.parametrize("bound_first", [True, False])
def test_a_daemon_whose_lock_was_removed_gives_way_to_the_next(path: Path, bound_first: bool) -> None:
    reasons: list[str] = []

    def start_another(listener: Listener) -> None:
        paths.lock_path(path).unlink()
        other = Election(path)
        bound = other.bind() if bound_first else None
        listener.ensure_path()
        assert not listener.leave_if_nobody_waits()
        listener.stop()
        assert path.exists()  # the other one may be about to bind it
        bound = bound or other.bind()
        assert bound.reachable and other.holds_lock
        bound.close()
        other.close()

    async def lose() -> None:
        async with _running(path, reasons.append) as listener:
            start_another(listener)

    anyio.run(lose)
    assert reasons == [f"the lock of {path} was removed, and another daemon (pid {os.getpid()}) has taken its place"]
