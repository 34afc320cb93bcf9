"""How a long run tells what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.figures import figure

# Of the same thing going wrong again and again, some tell as much as all.
_MOST_PROBLEMS = 50


def report(name: str, figures: Mapping[str, float | str], problems: Sequence[str], path: Path | None) -> int:
    """Print the figures and problems of the run `name`, write them to `path` if there is one; the exit status."""
    figure(f"soak {name}", **figures)
    text = json.dumps({"figures": figures, "problems": problems[:_MOST_PROBLEMS]}, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
    return 1 if problems else 0
