"""Pixels that differ, grouped into the spots that they form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

Grey: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Mask: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
Places: TypeAlias = np.ndarray[tuple[int], np.dtype[np.intp]]

# Pixels that lie closer than two cells belong together; the parts of a letter do, two lines of text do not always.
_CELL: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """Pixels that lie together, by their rows and columns."""

    rows: Places
    columns: Places

    @property
    def top(self) -> int:
        """First row."""
        return int(self.rows.min())

    @property
    def left(self) -> int:
        """First column."""
        return int(self.columns.min())

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.rows.max()) - self.top + 1

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.columns.max()) - self.left + 1

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return len(self.rows)

    def steps(self, before: Grey, after: Grey) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        """Return by how much each of its pixels differs."""
        found: np.ndarray[tuple[int], np.dtype[np.int16]] = np.abs(
            before[self.rows, self.columns].astype(np.int16) - after[self.rows, self.columns]
        )
        return found

    def keep(self, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Spot:
        """Return the spot of some of its pixels."""
        return Spot(self.rows[which], self.columns[which])


def find_spots(mask: Mask, most: int) -> list[Spot] | None:
    """Return the spots of `mask`, None where there are more than `most`."""
    # Ten times as fast as `nonzero` of two dimensions.
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    cells: dict[tuple[int, int], list[int]] = {}
    for at, cell in enumerate(zip((rows // _CELL).tolist(), (columns // _CELL).tolist(), strict=True)):
        cells.setdefault(cell, []).append(at)
    spots: list[Spot] = []
    while cells:
        if len(spots) == most:
            return None
        members = _take_one(cells)
        spots.append(Spot(rows[members], columns[members]))
    return spots


def _take_one(cells: dict[tuple[int, int], list[int]]) -> list[int]:
    """Remove a group of neighbouring cells and return the pixels in them."""
    cell, members = cells.popitem()
    waiting = [cell]
    while waiting:
        row, column = waiting.pop()
        for near in ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
            if (found := cells.pop(near, None)) is not None:
                members += found
                waiting.append(near)
    return members
