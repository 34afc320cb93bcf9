"""A bridge that lost its election: stands by beside the daemon that won, and takes over when that one ends.

ADR-006's adapter removes an existing socket, spawns a bridge, and needs its own child to say ``ready`` and to stay. The
daemon that holds the path binds it again within a second; what is left to do here is to wait for that, to say so, and
to end with the parent. Nothing of the other daemon is touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec

from vlmd_bridge.daemon.election import Election, LostElection
from vlmd_bridge.daemon.ready import ReadyChannel
from vlmd_protocol.codec import FrameTooLarge, LineDecoder, Malformed, decode_reply, decode_result
from vlmd_protocol.dialect import SEPARATE_DONE
from vlmd_protocol.errors import StartError, UnsafeSocketError
from vlmd_protocol.messages import HelloResult
from vlmd_protocol.paths import check_socket

log = logging.getLogger("vlmd.standby")

# A parent that is gone, and a daemon that is gone, are noticed within this time.
_CHECK_S = 0.25

# The daemon answers `hello` at once, whatever it does; one that is stopped must not keep us from watching.
_ANSWER_TIMEOUT_S = 1.0

_HELLO = b'{"id":0,"method":"hello","params":{"client":{"name":"mlx-bridge"}}}\n'
_READ_BYTES = 64 * 1024


class StandBy:
    """Waits beside the daemon that holds the path, for as long as `parent` lives."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def __call__(self, lost: LostElection, ready: ReadyChannel) -> bool:
        """Return True when the path is free again, False when the parent is gone. Ends the process on SIGTERM.

        Raises:
            StartError: the daemon there does not speak as ADR-006's adapter needs it.
        """
        log.info("the daemon with pid %d holds %s; standing by", lost.pid, lost.path)
        announced = False
        with _ending_on_sigterm():
            while os.getppid() == self._parent:
                if _is_free(lost.path):
                    log.info("the daemon with pid %d is gone; taking over", lost.pid)
                    return True
                if not announced and (hello := _greet(lost.path)) is not None:
                    if SEPARATE_DONE not in hello.capabilities:
                        raise StartError(
                            f"{lost} It was started without --adr-socket, and ADR-006's adapter would lose the last "
                            "batch of each request. Stop it, or choose another path."
                        )
                    if hello.state == "ready":
                        models = ", ".join(model.name for model in hello.models)
                        log.warning("the daemon with pid %d serves %s, with the model %s", hello.pid, lost.path, models)
                        ready.end("ready", model=models, socket=str(lost.path), pid=hello.pid)
                        announced = True
                time.sleep(_CHECK_S)
        log.info("the parent process is gone")
        return False


def _is_free(path: Path) -> bool:
    try:
        Election(path).close()
    except LostElection:
        return False
    return True


def _greet(path: Path) -> HelloResult | None:
    """Return what the daemon at `path` says of itself; None while it says nothing."""
    try:
        check_socket(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(os.fsencode(path))
            connection.sendall(_HELLO)
            lines = LineDecoder()
            while data := connection.recv(_READ_BYTES):
                for line in lines.feed(data):
                    if (reply := decode_reply(line)).id == 0:
                        return decode_result(reply, HelloResult)
    except (OSError, UnsafeSocketError, FrameTooLarge, Malformed, msgspec.DecodeError):
        # Not bound again yet, on its way out, or somebody else's who came between: looked at again soon.
        return None
    return None


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End the process, status 0, when it is told to: there is nothing to clean up but the log."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
