"""Shows how far a daemon is with loading its model, while the request that needs it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vlmd_bridge.cli.attach import attached_client
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.progress import ProgressView
from vlmd_protocol.errors import VlmdError
from vlmd_protocol.messages import ModelStatus

# How often the daemon is asked. Short against the time that a model needs.
_POLL_S: Final = 0.1


class LoadingWatch:
    """A thread that notes the stages of loading, on a connection of its own. A context manager.

    On the connection of the request itself, a daemon whose model fails to load would go away between two questions,
    and its reason with it; and the next question would start another.

    Attributes:
        ready_at: when the model was seen ready, by `time.monotonic`; None before.
    """

    def __init__(self, path: Path, progress: ProgressView) -> None:
        self.ready_at: float | None = None
        self._path = path
        self._progress = progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loading-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        shown = ""
        with attached_client(self._path) as client:
            while not self._ended.is_set():
                try:
                    status = client.status()
                except VlmdError:
                    # Not there yet, or gone: what the request says of it is what counts.
                    self._ended.wait(_POLL_S)
                    continue
                if status.state != "loading":
                    self.ready_at = time.monotonic()
                    return
                for text in _texts(status.models):
                    if text != shown:
                        self._progress.note(text)
                        shown = text
                self._ended.wait(_POLL_S)


def _texts(models: Sequence[ModelStatus]) -> Iterator[str]:
    for model in models:
        if model.state == "loading":
            yield f"loading {printable(model.name)}{'' if model.stage is None else f': {model.stage}'}"
