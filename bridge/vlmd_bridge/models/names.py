"""From the name of a model to the folder it is in. Nothing is ever fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import vlmd_bridge
from vlmd_bridge.models.errors import ModelError
from vlmd_bridge.models.probe import probe_model

DEMO_FOLDER = Path(vlmd_bridge.__file__).parent / "demo" / "model"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A model that can be loaded: the fields of `ConfigureEngine`. `name` is what the caller wrote."""

    name: str
    path: str
    backend: Literal["vision", "text", "fake"]


def resolve_model(name: str, environ: Mapping[str, str] = os.environ) -> ResolvedModel:
    """Resolve `name` and probe what it stands for.

    Args:
        name: A folder, ``demo``, a Hugging Face id (``owner/model``) whose snapshot is in the local cache, or ``fake``,
            ``fake:option=value,…``. A folder that exists wins over an id.
        environ: Where the cache's place is read.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    kind, _, options = name.partition(":")
    if kind == "fake":
        return ResolvedModel(name=name, path=options, backend="fake")
    path = find_model(name, environ)
    try:
        probed = probe_model(path)
    except ModelError as error:
        if error.code == "model_incomplete" and _is_hub_id(name):
            raise ModelError(error.code, f"{error} (hf download {name})") from None
        raise
    return ResolvedModel(name=name, path=str(path), backend=probed.kind)


def find_model(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that `name` stands for, without looking into it.

    Raises:
        ModelError: nothing of that name is on this machine.
    """
    if name == "demo":
        if not DEMO_FOLDER.is_dir():
            raise ModelError("model_not_found", f"this installation has no demo model ({DEMO_FOLDER}): install it anew")
        return DEMO_FOLDER
    folder = Path(name).expanduser()
    if folder.exists():
        return folder.resolve()
    if not _is_hub_id(name):
        raise ModelError(
            "model_not_found",
            f"{name!r} is no folder, and no Hugging Face id (owner/model) either; `demo` is always there",
        )
    cache = hub_cache(environ)
    snapshot = _snapshot(cache / f"models--{name.replace('/', '--')}")
    if snapshot is None:
        raise ModelError(
            "model_not_found", f"{name} is not on this machine (looked in {cache}); fetch it with: hf download {name}"
        )
    return snapshot


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the Hugging Face cache, by the hub's own environment variables (huggingface_hub's reference)."""
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None


def _snapshot(repository: Path) -> Path | None:
    """Return the snapshot that `main` names, or the only one: a download by commit leaves no ref."""
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        snapshots = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
        return snapshots[0] if len(snapshots) == 1 else None
    snapshot = repository / "snapshots" / revision
    return snapshot if revision and snapshot.is_dir() else None
