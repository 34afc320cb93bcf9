"""Framing of the messages on a worker's socketpair: a uint32 (little endian) byte count, so many bytes of msgpack."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from vlmd_bridge.workers.messages import Message

_HEADER = struct.Struct("<I")

# The daemon never sends more than a schema (64 KiB) and a prompt (a request is at most 32 MiB); a length above this
# means the stream has lost its framing.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class FramingError(Exception):
    """The byte stream between daemon and worker is not what `encode_message` writes."""


_encoder = msgspec.msgpack.Encoder()


def encode_message(message: Message) -> bytes:
    """Return the frame of `message`."""
    payload = _encoder.encode(message)
    return _HEADER.pack(len(payload)) + payload


class MessageBuffer:
    """Collects bytes and yields the payloads of whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take `data` and yield each payload that is now complete.

        Raises:
            FramingError: a length is beyond `MAX_MESSAGE_BYTES`.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > MAX_MESSAGE_BYTES:
                raise FramingError(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES}")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield payload
