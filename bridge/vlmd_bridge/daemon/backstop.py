"""The end of an owned daemon whose event loop has stopped: the last thing between a dead owner and an orphan."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_CHECK_S = 0.2

# The orderly end takes less (`EngineWorker.close`), and two seconds after its owner the daemon has to be gone.
_ORDERLY_S = 1.4


class Backstop:
    """Watches from a thread whether the owner lives; if it does not and neither do we end, ends this process.

    The workers see the end of their links. The event loop cannot be relied on for this: a file system that does not
    answer holds it up, and so does a defect.

    It begins before anything else does, for most of a start is imports, which nothing interrupts.

    Attributes:
        paths: what to remove then; ours only once the lock is.
        serving: there is something to end in order, for which there is time.
    """

    def __init__(self, owner: int) -> None:
        self.paths: Sequence[Path] = ()
        self.serving = False
        self._owner = owner
        threading.Thread(target=self._watch, name="vlmd-backstop", daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self._owner and not _stdin_hung_up():
            time.sleep(_CHECK_S)
        if self.serving:
            time.sleep(_ORDERLY_S)
        for path in self.paths:
            with contextlib.suppress(OSError):
                path.unlink()
        os._exit(1)


def _stdin_hung_up() -> bool:
    """Whether standard input is a pipe that nobody else holds any more: the owner may have gone before we looked."""
    poll = select.poll()
    poll.register(0, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
