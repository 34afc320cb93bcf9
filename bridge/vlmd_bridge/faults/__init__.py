"""Fault points: named places where a process can be made to fail, for tests. Inert unless `VLMD_FAULT` is set at start.

``VLMD_FAULT=worker.abort@token:17,image.kill@picture:5,daemon.exit@batch:3`` (see `spec`). A process has one plan,
made once at its start; code that has a point asks for it once and holds None when nothing is armed there::

    self._at_write = faults.point("store", "write")
    …
    if self._at_write is not None:
        self._at_write()
"""

from vlmd_bridge.faults.plan import Plan, Point, install, installed, point
from vlmd_bridge.faults.spec import VARIABLE, Fault, FaultSpecError, parse
from vlmd_bridge.faults.strike import InjectedFault

__all__ = [
    "VARIABLE",
    "Fault",
    "FaultSpecError",
    "InjectedFault",
    "Plan",
    "Point",
    "install",
    "installed",
    "parse",
    "point",
]
