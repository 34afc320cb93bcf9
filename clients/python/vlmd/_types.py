"""Type variables of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Its default lets users write `vlmd.Frame` without saying of what. The module is not needed to run.
    from typing_extensions import TypeVar

    Value_co = TypeVar("Value_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    Value_co = TypeVar("Value_co", covariant=True)

Value = TypeVar("Value")
