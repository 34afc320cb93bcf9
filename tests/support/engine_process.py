"""An engine worker driven over a real socketpair, as the daemon drives it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.framing import MessageBuffer, encode_message
from vlmd_bridge.workers.messages import (
    Beat,
    ConfigureEngine,
    Counted,
    Delta,
    EngineReady,
    Failed,
    Finished,
    FromEngine,
    Loading,
    Message,
    Picture,
    Removed,
)

_M = TypeVar("_M", bound=Message)
Ended = Finished | Failed | Removed


class EngineProcess:
    """`python -m vlmd_bridge.engine.process` with its socketpair and arena; every wait has a deadline."""

    def __init__(
        self, configure: ConfigureEngine | None, *, timeout_s: float = 60.0, faults: Sequence[str] = ()
    ) -> None:
        self.timeout_s = timeout_s
        self.arena = Arena(64 * 1024 * 1024)
        self.received: list[FromEngine] = []
        self._buffer = MessageBuffer()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self.socket, theirs = socket.socketpair()
        fds = (theirs.fileno(), self.arena.fd)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vlmd_bridge.engine.process"),
                *("--link-fd", str(fds[0]), "--arena-fd", str(fds[1])),
                *(f"--fault={fault}" for fault in faults),
            ],
            pass_fds=fds,
            stdout=subprocess.PIPE,
        )
        theirs.close()
        if configure is not None:
            self.send(configure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.socket.close()
        self.arena.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(map(encode_message, messages)))

    def put_picture(self, pixels: bytes, width: int, height: int) -> Picture:
        """Write RGB `pixels` into the arena, as an image process does."""
        offset = self.arena.take(len(pixels))
        assert os.pwrite(self.arena.fd, pixels, offset) == len(pixels)
        return Picture(offset=offset, width=width, height=height)

    def receive(self, timeout_s: float | None = None) -> list[FromEngine]:
        """Return the messages of the next read; empty at EOF.

        Raises:
            TimeoutError: nothing came.
        """
        readable, _, _ = select.select([self.socket], [], [], self.timeout_s if timeout_s is None else timeout_s)
        if not readable:
            raise TimeoutError("the worker sent nothing")
        messages = [self._decoder.decode(payload) for payload in self._buffer.feed(self.socket.recv(65536))]
        self.received += messages
        return messages

    def wait_for(self, kind: type[_M]) -> _M:
        """Return the next message of `kind`; others are kept in `received`."""
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            messages = self.receive(deadline_s - time.monotonic())
            if not messages:
                raise EOFError(f"no {kind.__name__} before EOF; received {self.received}")
            for message in messages:
                if isinstance(message, kind):
                    return message

    def ready(self) -> EngineReady:
        return self.wait_for(EngineReady)

    def wait_ended(self, *seqs: int) -> dict[int, Ended]:
        """Return how each of `seqs` ended. None ends twice, and no other ends."""
        ended: dict[int, Ended] = {}
        deadline_s = time.monotonic() + self.timeout_s
        while ended.keys() != set(seqs):
            messages = self.receive(deadline_s - time.monotonic())
            if not messages:
                raise EOFError(f"EOF while waiting for {set(seqs) - ended.keys()}")
            for message in messages:
                assert isinstance(message, Beat | Loading | Delta | Counted | Finished | Failed | Removed)
                if isinstance(message, Ended):
                    assert message.seq not in ended and message.seq in seqs
                    ended[message.seq] = message
        return ended

    def streamed(self, seq: int) -> tuple[str, str]:
        """Return the text and the thinking that came in deltas."""
        deltas = [m for m in self.received if isinstance(m, Delta) and m.seq == seq]
        return "".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas)

    def wait_exit(self) -> int:
        return self.process.wait(self.timeout_s)
