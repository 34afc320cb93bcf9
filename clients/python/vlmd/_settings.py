"""What a client was asked to be, resolved from arguments and environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from vlmd._timeouts import Timeouts
from vlmd_protocol.paths import check_length, shared_socket_path

# owned: a daemon of our own, on a socket of our own. shared: the one at the socket, started if there is none.
# attached: the one at the socket, never started.
Ownership: TypeAlias = Literal["owned", "shared", "attached"]

# A shared daemon that nobody uses gives its memory back after so long.
SHARED_IDLE_TIMEOUT_S = 300.0

# Names that a daemon resolves itself even where there is a folder of that name.
_MODELS_THAT_ARE_NO_FOLDERS = ("demo", "fake")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Resolved options of a client.

    Attributes:
        ownership: whose daemon it is.
        socket: where it listens; None for an owned one, whose path is chosen at each start.
        model: that a started daemon loads.
        text_model: that it loads beside it, for prompts without pictures.
        command: as the caller gave it, or None.
        python: as the caller gave it, or None.
        timeouts: deadlines.
        resume: whether `describe` goes on after the daemon was lost.
        log: the caller's hook, or None.
    """

    ownership: Ownership
    socket: Path | None
    model: str | None
    text_model: str | None
    command: str | Sequence[str] | None
    python: str | os.PathLike[str] | None
    timeouts: Timeouts
    resume: bool
    log: Callable[[str], None] | None


def model_name(model: str | None) -> str | None:
    """Return what a daemon is to call a model: a folder by its absolute path, for the daemon's folder is its own."""
    if model is None or model.partition(":")[0] in _MODELS_THAT_ARE_NO_FOLDERS:
        return model
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def resolve(
    *,
    model: str | None = None,
    text_model: str | None = None,
    shared: bool | None = None,
    socket: str | os.PathLike[str] | None = None,
    start: bool = True,
    command: str | Sequence[str] | None = None,
    python: str | os.PathLike[str] | None = None,
    timeouts: Timeouts | None = None,
    resume: bool = True,
    log: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings; ``VLMD_SOCKET`` counts unless `socket` or ``shared=False`` is given.

    Raises:
        UnsafeSocketError: the socket's path is too long.
        ValueError: the arguments contradict each other.
    """
    environment = os.environ if environment is None else environment
    if socket is not None and shared is False:
        raise ValueError("A daemon at a given socket is shared: pass `socket` or shared=False, not both.")
    path: Path | None = None
    if socket is not None:
        path = Path(os.path.abspath(socket))  # noqa: PTH100 - resolve() would follow a symlink at the path
    elif shared is not False and (named := environment.get("VLMD_SOCKET")):
        path = Path(os.path.abspath(named))  # noqa: PTH100
    elif shared:
        path = shared_socket_path()
    if path is None and not start:
        raise ValueError("start=False attaches to a running daemon: pass `socket` or shared=True.")
    if path is not None:
        check_length(path)
    return Settings(
        ownership="owned" if path is None else "shared" if start else "attached",
        socket=path,
        model=model_name(model),
        text_model=model_name(text_model),
        command=command,
        python=python,
        timeouts=timeouts or Timeouts(),
        resume=resume,
        log=log,
    )
