"""What a fault does when it strikes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import time
from typing import NoReturn

from vlmd_bridge.faults.spec import Fault

_MIB = 1024 * 1024
_FOREVER_S = 3600

# A length that is followed by fewer bytes, and bytes that are no msgpack map of a message.
_TORN = struct.pack("<I", 100) + b"\x83\xa4type"
_GARBAGE = struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1"


class InjectedFault(RuntimeError):
    """The error of a fault of kind ``raise``."""


def strike(fault: Fault, link: socket.socket | None) -> None:
    """Do what `fault` says, in this process, on this thread."""
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(2, f"fault point: {fault.text} strikes\n".encode())
    match fault.kind:
        case "abort":
            os.abort()
        case "segv":
            _die_of(signal.SIGSEGV)
        case "kill":
            _die_of(signal.SIGKILL)
        case "exit":
            os._exit(fault.argument or 0)
        case "oom":
            taken = bytearray(_MIB * (64 if fault.argument is None else fault.argument))
            taken[::4096] = bytes(len(taken[::4096]))  # every page is used, not only asked for
            _die_of(signal.SIGKILL)
        case "memory":
            raise MemoryError("fault point")
        case "raise":
            raise InjectedFault(f"fault point {fault.text}")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "hang":
            while True:
                time.sleep(_FOREVER_S)
        case "wedge":
            _wedge()
        case "slow":
            time.sleep((fault.argument or 0) / 1000)
        case "flood" | "hush":
            _bother_stderr(fault)
        case _:
            _spoil(fault.kind, link)


def _spoil(kind: str, link: socket.socket | None) -> None:
    """Make the link to the daemon useless."""
    assert link is not None, "a point without a link"
    if kind == "shut":
        link.shutdown(socket.SHUT_RDWR)
        return
    link.sendall(_TORN if kind == "torn" else _GARBAGE)
    if kind == "torn":
        os._exit(0)


def _bother_stderr(fault: Fault) -> None:
    if fault.kind == "hush":
        # Not closed: the next file that is opened would become standard error.
        read, write = os.pipe()
        os.close(read)
        for fd in (1, 2):
            os.dup2(write, fd)
        os.close(write)
        return
    line = b"x" * 65535 + b"\n"
    for _ in range(_MIB * (16 if fault.argument is None else fault.argument) // len(line)):
        os.write(2, line)


def _wedge() -> NoReturn:
    """Never return, and hold the interpreter's lock meanwhile: `PyDLL` does not release it around a call."""
    import ctypes  # milliseconds that no start needs

    library = ctypes.PyDLL(None)
    while True:
        library.sleep(_FOREVER_S)


def _die_of(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:  # it may be delivered to another thread first
        time.sleep(_FOREVER_S)
