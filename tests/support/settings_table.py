"""Rows of the settings table that README and docs print, as the code has them."""

from __future__ import annotations

from vlmd_bridge.config.settings import Key


def row_start(key: Key) -> str:
    """Return what the row of `key` begins with: name, variables and, where it is a number, the default."""
    own, *adr = key.variables
    row = f"| `{key.name}` | `{own}` | {''.join(f'`{name}` ' for name in adr)}| "
    if isinstance(key.default, int | float) and not isinstance(key.default, bool):
        row += str(int(key.default))
    return row
