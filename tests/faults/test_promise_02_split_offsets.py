"""Promise 2: every vector decodes the same whole, byte by byte, and split in two at every offset.

What goes to a daemon through its side of a connection, and what goes to a client through its session, sans IO; the
bytes of the lines as well as what they mean. ``clients/typescript/test/splits.test.ts`` does it in TypeScript. What
the vectors are to decode to, ``tests/vectors`` checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tests.faults.figures import LONG, figure
from vlmd._session import Answered, ClientSession, Event
from vlmd_protocol.codec import FrameTooLarge, LineDecoder
from vlmd_protocol.connection import ServerConnection
from vlmd_protocol.limits import MAX_FRAME_BYTES
from vlmd_protocol.messages import NoParams
from vlmd_protocol.vectors import load, to_bytes

# A longer stream (a line of 200,000 brackets) is split everywhere only in a long run; else at so many places, and
# everywhere within so many bytes of the ends of lines.
_EVERYWHERE_BYTES = 8 * 1024
_SOME_PLACES = 64
_NEAR_BYTES = 32

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

# What a stream decodes to, in a form that can be compared.
Decode: TypeAlias = Callable[[list[bytes]], list[str]]


def to_a_daemon() -> Iterator[tuple[str, bytes, int]]:
    """Yield each stream that a daemon may be sent, with its name and the limit of a line."""
    for name in ("decode/requests", "invalid/requests", "invalid/params"):
        for case in load(name):
            yield f"{name}#{case['name']}", to_bytes(case["line"]) + b"\n", MAX_FRAME_BYTES
    for name in ("decode/lines", "invalid/streams"):
        for case in load(name):
            limit = case.get("max_frame_bytes", MAX_FRAME_BYTES)
            yield f"{name}#{case['name']}", to_bytes(case["input"]), limit


def to_a_client() -> Iterator[tuple[str, bytes, int]]:
    """Yield each stream that a client may be sent."""
    for name in ("decode/replies", "invalid/lines"):
        for case in load(name):
            yield f"{name}#{case['name']}", to_bytes(case["line"]) + b"\n", MAX_FRAME_BYTES


def feedings(stream: bytes) -> Iterator[list[bytes]]:
    """Yield the stream byte by byte, and in two parts."""
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in offsets(stream):
        yield [stream[:at], stream[at:]]


def offsets(stream: bytes) -> list[int]:
    """Return where to split."""
    if LONG or len(stream) <= _EVERYWHERE_BYTES:
        return list(range(1, len(stream)))
    ends = [0, *(at for at, byte in enumerate(stream) if byte == 0x0A), len(stream)]
    near = {place for end in ends for place in range(end - _NEAR_BYTES, end + _NEAR_BYTES)}
    near.update(range(1, len(stream), len(stream) // _SOME_PLACES))
    return sorted(place for place in near if 0 < place < len(stream))


def lines(limit: int) -> Decode:
    """Return a decoder of lines."""

    def decode(parts: list[bytes]) -> list[str]:
        decoder, found = LineDecoder(limit), list[str]()
        try:
            for part in parts:
                for line in decoder.feed(part):
                    found.append(str(hash(line)))
        except FrameTooLarge:
            return [*found, "too large"]
        return [*found, f"rest {decoder.rest()!r}"]

    return decode


def events_of_a_daemon(limit: int) -> Decode:
    """Return the daemon's side of a connection, which runs everything at once."""

    def decode(parts: list[bytes]) -> list[str]:
        connection, found = ServerConnection(max_frame_bytes=limit), list[str]()
        connection.negotiate()
        for part in parts:
            found += map(repr, connection.receive(part))
            if found and "fatal=True" in found[-1]:
                return found
        return [*found, *map(repr, connection.receive_eof())]

    return decode


def events_of_a_client(_: int) -> Decode:
    """Return a client's session that waits for two answers."""

    def decode(parts: list[bytes]) -> list[str]:
        session = ClientSession()
        session.request("ping", NoParams())
        session.request("describe_images", NoParams())
        return [_meaning(event) for part in parts for event in session.receive(part)]

    return decode


def _meaning(event: Event) -> str:
    # A raw result tells nothing of itself but its address.
    raw = bytes(event.reply.result or b"") if isinstance(event, Answered) else b""
    return f"{type(event).__name__} {_ADDRESS.sub('', repr(event))} {raw!r}"


STREAMS: list[tuple[str, bytes, int, Callable[[int], Decode]]] = [
    (name, stream, limit, events_of_a_daemon) for name, stream, limit in to_a_daemon()
]
STREAMS += [(name, stream, limit, events_of_a_client) for name, stream, limit in to_a_client()]


def test_every_vector() -> None:
    count = 0
    for name, stream, limit, events in STREAMS:
        decoders = [lines(limit)]
        if len(stream) <= _EVERYWHERE_BYTES:
            decoders.append(events(limit))
        for decode in decoders:
            whole = decode([stream])
            for parts in feedings(stream):
                assert decode(parts) == whole, f"{name} in parts of {[len(part) for part in parts[:3]]}"
                count += 1
    figure("2", vectors=len(STREAMS), python_splits=count, different=0)
