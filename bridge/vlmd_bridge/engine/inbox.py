"""Messages from the daemon, read by a thread of their own while the main thread steps the model."""

from __future__ import annotations

import os
import queue
import sys
import threading

from vlmd_bridge.engine.fault_points import FaultPoints
from vlmd_bridge.workers.blocking_link import BlockingLink
from vlmd_bridge.workers.messages import Close, ToEngine


class Inbox:
    """The queue between the reader thread and the main thread. EOF and a broken stream read as `Close`."""

    def __init__(self, link: BlockingLink[ToEngine], points: FaultPoints) -> None:
        self._link = link
        self._points = points
        self._queue: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._loading = threading.Event()
        # A daemon thread: it blocks in recv() when the main thread returns.
        threading.Thread(target=self._read, name="vlmd-link", daemon=True).start()

    def get(self, timeout_s: float | None = None) -> ToEngine | None:
        """Return the next message, or None after `timeout_s` without one."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def get_nowait(self) -> ToEngine | None:
        """Return the next message, or None when none waits."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def set_loading(self, loading: bool) -> None:
        """Say whether the main thread is loading: a load cannot be interrupted, so `Close` then ends the process."""
        if loading:
            self._loading.set()
        else:
            self._loading.clear()

    def _read(self) -> None:
        try:
            for message in self._link.receive():
                self._points.message()
                if isinstance(message, Close):
                    break
                self._queue.put(message)
        except Exception as error:  # noqa: BLE001 - boundary: whatever ends the reader must end the worker
            print(f"vlmd engine: the link is broken: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the log
        if self._loading.is_set():
            # Nothing is wired yet and nothing runs: dropping the process returns all memory.
            os._exit(0)
        # The main thread finishes its step and releases the model. One that hangs is ended by the daemon, or, where
        # that is gone, by `workers.orphan`.
        self._queue.put(Close())
