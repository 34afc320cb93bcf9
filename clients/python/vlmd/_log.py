"""Where the client's own lines and its daemon's log lines go."""

from __future__ import annotations

import logging
from collections.abc import Callable

# ADR-006's prefix of adapter lines, which tells them from the daemon's `[MLX]`.
PREFIX = "[VLM] "

_logger = logging.getLogger("vlmd.client")


class ClientLog:
    """Passes lines, prefixed, to the caller's hook, or to the logger ``vlmd.client`` at level INFO."""

    def __init__(self, hook: Callable[[str], None] | None) -> None:
        self._hook = hook

    def __call__(self, line: str) -> None:
        """Log a line. It is called from background threads, too."""
        text = line if line.startswith(PREFIX) else PREFIX + line
        if self._hook is None:
            _logger.info("%s", text)
            return
        # A boundary: a caller's hook must not end the thread that drains the daemon's pipe.
        try:
            self._hook(text)
        except Exception:
            _logger.exception("%sThe log hook raised an exception.", PREFIX)
