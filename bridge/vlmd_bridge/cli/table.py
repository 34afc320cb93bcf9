"""A table whose rows are printed as they come."""

from __future__ import annotations

import shutil
import sys
from typing import Final

from rich.cells import cell_len, set_cell_size

from vlmd_bridge.cli.printable import printable
from vlmd_protocol.messages import FrameResult

# Columns that have room enough with these; what is left of the line is the description's.
_INDEX: Final = 5
_TIME: Final = 9
_NAME: Final = 24
_ACTIVITY: Final = 22
_APPS: Final = 20
_LEAST_DESCRIPTION: Final = 30


class Table:
    """Frames as rows; cut to the terminal's width, whole where stdout is no terminal."""

    def __init__(self, *, with_time: bool) -> None:
        self._with_time = with_time
        self._headed = False
        terminal = sys.stdout.isatty()
        fixed = _INDEX + (_TIME if with_time else 0) + _NAME + _ACTIVITY + _APPS + 5
        width = shutil.get_terminal_size().columns
        self._description = max(width - fixed, _LEAST_DESCRIPTION) if terminal else None

    def row(self, result: FrameResult) -> None:
        """Print one frame, before the first one the head; of a frame that failed, its error."""
        if not self._headed:
            self._headed = True
            self._row("#", "time", "picture", "activity", "apps", "description")
        failed = result.error is not None or result.code is not None
        self._row(
            str(result.index),
            "" if result.timestamp is None else f"{result.timestamp:.2f}s",
            result.image_path.rpartition("/")[2],
            "FAILED" if failed else result.activity,
            "" if failed else ", ".join(result.apps),
            f"{result.error} [{result.code}]" if failed else result.description,
        )

    def _row(self, index: str, time: str, name: str, activity: str, apps: str, description: str) -> None:
        cells = [f"{index:>{_INDEX}}"]
        if self._with_time:
            cells.append(f"{time:>{_TIME}}")
        cells += [_cell(name, _NAME), _cell(activity, _ACTIVITY), _cell(apps, _APPS)]
        last = printable(description)
        if self._description is not None and cell_len(last) > self._description:
            last = set_cell_size(last, self._description - 1) + "…"
        print(" ".join([*cells, last]).rstrip())


def _cell(text: str, width: int) -> str:
    text = printable(text)
    # Cells, not characters: Chinese and emoji take two.
    return set_cell_size(text, width - 1) + "…" if cell_len(text) > width else set_cell_size(text, width)
