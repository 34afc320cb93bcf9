"""The worker's end of its socketpair: blocking, for plain threads. Standard library and msgspec only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from vlmd_bridge.workers.framing import MessageBuffer, encode_message
from vlmd_bridge.workers.messages import Message

_Incoming = TypeVar("_Incoming")

# Large enough for the usual burst of messages in one system call.
_READ_BYTES = 64 * 1024


class BlockingLink(Generic[_Incoming]):
    """Sends messages from any thread; `receive` is for one reader thread."""

    def __init__(self, fd: int, incoming: object) -> None:
        """Take over `fd`. `incoming` is the union of message types that `receive` decodes."""
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(True)
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._send_lock = threading.Lock()

    def send(self, *messages: Message) -> None:
        """Send `messages` in order. A daemon that is gone is not an error: the reader sees EOF and ends the worker."""
        data = b"".join(map(encode_message, messages))
        try:
            with self._send_lock:
                self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> Iterator[_Incoming]:
        """Yield messages until EOF."""
        buffer = MessageBuffer()
        while True:
            try:
                data = self.socket.recv(_READ_BYTES)
            except ConnectionResetError:
                return
            if not data:
                return
            for payload in buffer.feed(data):
                yield self._decoder.decode(payload)
