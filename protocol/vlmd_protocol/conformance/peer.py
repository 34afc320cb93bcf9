"""One connection to the server under test: bytes out, lines in, each with a deadline."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any

from vlmd_protocol.codec import LineDecoder

_READ_BYTES = 256 * 1024
_WRITE_BYTES = 256 * 1024


class PeerGone(Exception):
    """The server closed the connection."""


class Silence(Exception):
    """Nothing came before the deadline."""


class BadLine(Exception):
    """The server sent what is no line of the protocol."""


class Peer:
    """Sends while it reads, so that a server that answers before it has read everything stops nobody."""

    def __init__(self, path: str, *, ascii_only: bool) -> None:
        self._ascii_only = ascii_only
        self._lines = LineDecoder()
        self._received: deque[dict[str, Any]] = deque()
        self._gone = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`; a server that closes meanwhile is no error here, since its last line may be read."""
        deadline = time.monotonic() + timeout_s
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select(
                [] if self._gone else [self._socket], [self._socket], [], max(0.0, deadline - time.monotonic())
            )
            if readable:
                self._read()
            if writable:
                try:
                    view = view[self._socket.send(view[:_WRITE_BYTES]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return
            elif not readable:
                raise Silence("the server reads nothing")

    def line(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line.

        Raises:
            PeerGone, Silence, BadLine: as they say.
        """
        deadline = time.monotonic() + timeout_s
        while not self._received:
            if self._gone:
                raise PeerGone("the server closed the connection")
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Silence(f"nothing came within {timeout_s:g} s")
            self._read()
        return self._received.popleft()

    def half_close(self) -> None:
        """Say that nothing more will come."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone = True
            if rest := self._lines.rest():
                raise BadLine(f"the server closed in the middle of a line: {rest[:80]!r}")
        if self._ascii_only and not data.isascii():
            raise BadLine("the server sent a byte that is not ASCII")
        for raw in self._lines.feed(data):
            try:
                line = json.loads(raw.decode())
            except ValueError as error:
                raise BadLine(f"the server sent {raw[:80]!r}: {error}") from None
            if not isinstance(line, dict):
                raise BadLine(f"the server sent {raw[:80]!r}, which is no object")
            self._received.append(line)
