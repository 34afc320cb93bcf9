"""Figures with their spread, and what issue a target makes of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The median of repeated measurements, the least and the most of them."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2) -> str:
        """Return ``median (low to high)``."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of `values`, at least one."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values), count=len(values))


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the ratios, each of one round: what slows the machine for a while slows both."""
    return spread([a / b for a, b in zip(mine, theirs, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One target and what was measured against it.

    Attributes:
        what: the target's name.
        least: what has to be met, in words, with its comparison.
        aim: what is hoped for, in words; empty where there is none.
        measured: in words; says why where it was not measured.
        verdict: how it stands.
    """

    what: str
    least: str
    aim: str
    measured: str
    verdict: Literal["pass, aim met", "pass", "MISS", "not measured"]


def judge(
    what: str,
    value: float | None,
    *,
    least: float,
    aim: float | None = None,
    below: bool = False,
    unit: str = "",
    measured: str = "",
) -> Verdict:
    """Compare `value` with a target: at least `least`, or with `below` less than it. None was not measured."""
    sign = "< " if below else "≥ "

    def met(bound: float) -> bool:
        assert value is not None
        return value < bound if below else value >= bound

    if value is None:
        verdict: Literal["pass, aim met", "pass", "MISS", "not measured"] = "not measured"
    elif not met(least):
        verdict = "MISS"
    else:
        verdict = "pass, aim met" if aim is not None and met(aim) else "pass"
    return Verdict(
        what=what,
        least=f"{sign}{least:g}{unit}",
        aim="" if aim is None else f"{sign}{aim:g}{unit}",
        measured=measured or ("" if value is None else f"{value:.3g}{unit}"),
        verdict=verdict,
    )
