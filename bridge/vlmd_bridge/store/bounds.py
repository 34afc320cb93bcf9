"""How much the result store keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY_S: Final = 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Bytes of the file, and seconds since an entry was last used."""

    max_bytes: int
    max_age_s: float


# Some 400,000 records of ADR-006's form: a hundred hours at one frame a second.
DEFAULT_BOUNDS: Final = Bounds(max_bytes=256 * 1024 * 1024, max_age_s=30 * DAY_S)
