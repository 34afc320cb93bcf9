"""The faults of one process, and how a process hands on those of its children."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vlmd_bridge.faults.spec import Fault, parse
from vlmd_bridge.faults.strike import strike

# A point that was reached; the argument tells the content where that is what a fault looks for.
Point = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Armed:
    """A fault and the pipe that holds a byte for each time it may yet strike, in whatever process; None: no bound."""

    fault: Fault
    times_fd: int | None

    def take(self) -> bool:
        """Take one of the times that are left."""
        return self.times_fd is None or os.read(self.times_fd, 1) != b""


class Plan:
    """What is armed in this process."""

    def __init__(self, armed: Sequence[_Armed] = ()) -> None:
        self._armed = tuple(armed)
        self._points: dict[tuple[str, str], Point] = {}

    @classmethod
    def arm(cls, text: str) -> Plan:
        """Arm the faults of `text`, in the first process of a tree.

        Raises:
            FaultSpecError: `text` cannot be followed.
        """
        return cls([_Armed(fault, _pipe_of(fault.times)) for fault in parse(text)])

    @classmethod
    def inherit(cls, arguments: Sequence[str]) -> Plan:
        """Take over what `handed_on` wrote into this process's command line."""
        armed = []
        for argument in arguments:
            text, _, fd = argument.partition("#")
            (fault,) = parse(text)
            if fd:
                os.set_inheritable(int(fd), False)
            armed.append(_Armed(fault, int(fd) if fd else _pipe_of(fault.times)))
        return cls(armed)

    def handed_on(self, place: str) -> tuple[list[str], tuple[int, ...]]:
        """Return the arguments, and the descriptors to pass, that arm a child process which is `place`."""
        ours = [armed for armed in self._armed if armed.fault.place == place]
        arguments = [
            f"--fault={armed.fault.text}" + ("" if armed.times_fd is None else f"#{armed.times_fd}") for armed in ours
        ]
        return arguments, tuple(armed.times_fd for armed in ours if armed.times_fd is not None)

    @property
    def texts(self) -> list[str]:
        """The faults, as they were asked for."""
        return [armed.fault.text for armed in self._armed]

    def point(self, place: str, name: str, link: socket.socket | None = None) -> Point | None:
        """Return what to call at a point, or None where nothing is armed. `link` is the worker's to its daemon."""
        here = [armed for armed in self._armed if (armed.fault.place, armed.fault.point) == (place, name)]
        if not here:
            return None
        # One count of occurrences, however many ask for the point.
        return self._points.setdefault((place, name), _point(here, link))

    def close(self) -> None:
        """Close the pipes."""
        for armed in self._armed:
            if armed.times_fd is not None:
                os.close(armed.times_fd)
        self._armed = ()


def _point(here: Sequence[_Armed], link: socket.socket | None) -> Point:
    count = 0
    lock = threading.Lock()  # a point may be reached on several threads

    def reached(content: str = "", *, occurrences: int = 1) -> None:
        nonlocal count
        with lock:
            count += occurrences
        for armed in here:
            fault = armed.fault
            due = count >= fault.count if fault.content is None else fault.content in content
            if due and armed.take():
                strike(fault, link)

    return reached


def _pipe_of(times: int | None) -> int | None:
    if times is None:
        return None
    read, write = os.pipe()
    os.write(write, bytes(times))
    os.close(write)  # after the last byte a read returns nothing instead of waiting
    return read


_NOTHING: Final = Plan()
_plan = _NOTHING


def install(plan: Plan) -> None:
    """Make `plan` this process's, before anything asks for a point."""
    global _plan
    _plan = plan


def installed() -> Plan:
    """Return this process's plan."""
    return _plan


def point(place: str, name: str, link: socket.socket | None = None) -> Point | None:
    """Return what to call when a point of this process is reached, or None while nothing is armed there."""
    return _plan.point(place, name, link)
