"""Vectors as pytest parameters."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from vlmd_protocol.vectors import load


def cases(name: str) -> list[ParameterSet]:
    """Return the cases of a file, each under its own name."""
    return [pytest.param(case, id=case["name"]) for case in load(name)]
