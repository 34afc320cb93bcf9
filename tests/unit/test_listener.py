"""The accept loop, in this process: peers that are gone before their turn."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.abc
import pytest

from vlmd_bridge.daemon.election import Election
from vlmd_bridge.daemon.listener import Listener

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

    async def serve() -> None:
        election = Election(path)
        listener = Listener(election, _echo)
        listener.bind()
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.run)
                assert await _ask(path) == b""
                assert await _ask(path) == b"?"
                listener.stop()
        assert listener.connections == 0
        election.close()

    anyio.run(serve)
    assert gone[0].fileno() == -1
