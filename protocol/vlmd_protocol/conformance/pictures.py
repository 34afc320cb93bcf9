"""Pictures for the dialogues: PNG files of one colour each, written with the standard library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

# Enough for every model's smallest picture.
_SIDE = 64


def write_picture(path: Path, number: int) -> None:
    """Write picture `number`; no two numbers under 4096 have the same colour."""
    pixel = bytes(((number & 15) * 16, (number >> 4 & 15) * 16, (number >> 8 & 15) * 16))
    rows = (b"\0" + pixel * _SIDE) * _SIDE
    header = struct.pack(">2I5B", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
