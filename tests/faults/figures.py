"""How often a promise is put to the test, and the figure that comes of it.

Small on every push; large where `VLMD_FAULTS` is ``long``, which `scripts/faults --long` sets.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("VLMD_FAULTS") == "long"

_figures: list[str] = []


def rounds(*, push: int, long: int) -> int:
    """Return how many rounds this run is to do."""
    return long if LONG else push


def figure(promise: str, **values: float | str) -> None:
    """Keep the figure of `promise` (its number in docs/reliability.md, or a name) for the end of the run.

    Where `VLMD_FIGURES` names a file, a line of JSON is appended to it.
    """
    _figures.append(f"promise {promise}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    if path := os.environ.get("VLMD_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"promise": promise, "long": LONG, **values}) + "\n")


def printed() -> list[str]:
    """Return a line for each figure so far."""
    return list(_figures)
