"""The engine's optimisations, each of which can be switched off: to measure what it buys, or to look for a fault.

Answers do not depend on them: ``tests/engine/test_gate_switches.py`` and, for `vision_tower`, ``test_tower.py`` compare
with each switched off. Imports nothing of the model stack: the daemon and the command line check names with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Switches:
    """What the engine may do.

    Attributes:
        vision_tower: patches straight from pixels, tables kept; on a CPU our own tower, ahead of the rows that wait.
        shared_prefix: the instructions' keys and values computed once and shared by every row.
        forced_tokens: tokens that the grammar leaves no choice about are appended several at once, unsampled.
        batched_masks: the grammar's masks of all rows are made in one call.
        own_decode: our own decode loop instead of mlx-vlm's.
        measured_width: the batch width is chosen by measuring at load.
    """

    vision_tower: bool = True
    shared_prefix: bool = True
    forced_tokens: bool = True
    batched_masks: bool = True
    own_decode: bool = True
    measured_width: bool = True

    @classmethod
    def without(cls, names: Iterable[str]) -> Self:
        """Return all but those of `names`.

        Raises:
            ValueError: there is none of that name.
        """
        off = set(names)
        if unknown := sorted(off - set(NAMES)):
            raise ValueError(f"no optimisation is called {unknown[0]!r}; there are {', '.join(NAMES)}")
        return cls(**dict.fromkeys(off, False))


ALL_ON = Switches()

# What a setting says that switches nothing off.
NONE = "none"

NAMES = tuple(field.name for field in fields(Switches))


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in `text`, which commas separate; `NONE` stands for no name.

    Raises:
        ValueError: one is unknown.
    """
    if text == NONE:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    Switches.without(names)
    return names
