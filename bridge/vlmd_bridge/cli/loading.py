"""Shows what a daemon is doing before it can describe anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from vlmd import Client
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.cli.progress import ProgressView
from vlmd_protocol.messages import ModelStatus

# How often a loading daemon is asked how far it is.
_POLL_S: Final = 0.2


def wait_loaded(client: Client, progress: ProgressView) -> None:
    """Show how far the model's loading is; returns when it is loaded or has failed, which `describe` then tells."""
    shown = ""
    state = client.hello().state
    while state == "loading":
        status = client.status()
        state = status.state
        for text in _texts(status.models):
            if text != shown:
                progress.note(text)
                shown = text
        if state == "loading":
            time.sleep(_POLL_S)


def _texts(models: Sequence[ModelStatus]) -> Iterator[str]:
    for model in models:
        if model.state == "loading":
            yield f"loading {printable(model.name)}{'' if model.stage is None else f': {model.stage}'}"
