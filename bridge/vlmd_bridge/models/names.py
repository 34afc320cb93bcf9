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

# `owner/model`, and what may follow an `@`: a branch, a tag, or a commit's first digits.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@((?:[A-Za-z0-9][\w.-]*/)*[A-Za-z0-9][\w.-]*))?")

# Digits of a commit that a message shows; the hub's own pages show as many.
_SHOWN_DIGITS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A model that can be loaded: the fields of `ConfigureEngine`. `name` is what the caller wrote."""

    name: str
    path: str
    backend: Literal["vision", "text", "fake"]


def resolve_model(name: str, environ: Mapping[str, str] = os.environ) -> ResolvedModel:
    """Resolve `name` and probe what it stands for.

    Args:
        name: A folder, ``demo``, a Hugging Face id (``owner/model``) of which the local cache has a complete revision,
            one that is chosen (``owner/model@revision``: a branch, a tag or the start of a commit), or ``fake``,
            ``fake:option=value,…``. A folder that exists wins over an id. Without a revision ``main`` counts where it
            is complete, else the newest that is.
        environ: Where the cache's place is read.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    kind, _, options = name.partition(":")
    if kind == "fake":
        return ResolvedModel(name=name, path=options, backend="fake")
    folders = _find(name, environ)
    incomplete: list[str] = []
    for folder in folders:
        try:
            return ResolvedModel(name=name, path=str(folder), backend=probe_model(folder).kind)
        except ModelError as error:
            # A download that broke off may have left anything out, and nothing else is wrong with it.
            broken_off = error.code == "model_incomplete" or not (folder / "config.json").is_file()
            if not broken_off or not _in_cache(folder):
                raise
            incomplete.append(f"revision {folder.name[:_SHOWN_DIGITS]}: {error}")
    raise ModelError("model_incomplete", f"{'; '.join(incomplete)} ({_fetch_command(name)})")


def find_model(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that `name` stands for, without looking into it; the first choice where there are several.

    Raises:
        ModelError: nothing of that name is on this machine.
    """
    return _find(name, environ)[0]


def _find(name: str, environ: Mapping[str, str]) -> list[Path]:
    """Return the folders that `name` may stand for, the first choice first."""
    if name == "demo":
        if not DEMO_FOLDER.is_dir():
            raise ModelError("model_not_found", f"this installation has no demo model ({DEMO_FOLDER}): install it anew")
        return [DEMO_FOLDER]
    folder = Path(name).expanduser()
    if folder.exists():
        return [folder.resolve()]
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ModelError(
            "model_not_found",
            f"{name!r} is no folder, and no Hugging Face id (owner/model) either; `demo` is always there",
        )
    hub_id, revision = match.groups()
    cache = hub_cache(environ)
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshots = _snapshots(repository) if revision is None else _snapshots_of(repository, revision, name)
    if not snapshots:
        there = ""
        if revision is not None and (others := _snapshots(repository)):
            there = f"; of {hub_id} there is {', '.join(path.name[:_SHOWN_DIGITS] for path in others)}"
        message = f"{name} is not on this machine (looked in {cache}{there}); fetch it with: {_fetch_command(name)}"
        raise ModelError("model_not_found", message)
    return snapshots


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the Hugging Face cache, by the hub's own environment variables (huggingface_hub's reference)."""
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _fetch_command(name: str) -> str:
    hub_id, _, revision = name.partition("@")
    return f"hf download {hub_id}{f' --revision {revision}' if revision else ''}"


def _in_cache(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _snapshots(repository: Path) -> list[Path]:
    """Return every snapshot, that of `main` first, then the newest. A download by commit leaves no ref."""
    found = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    main = _ref(repository, "main")
    return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


def _snapshots_of(repository: Path, revision: str, name: str) -> list[Path]:
    """Return the snapshot of a branch, a tag or a commit whose first digits are given.

    Raises:
        ModelError: several commits begin so.
    """
    commit = _ref(repository, revision) or revision
    found = [path for path in _snapshots(repository) if path.name.startswith(commit)]
    exact = [path for path in found if path.name == commit]
    if len(found) > 1 and not exact:
        commits = ", ".join(sorted(path.name for path in found))
        raise ModelError("model_not_found", f"{name} may be one of {commits}: give more digits")
    return exact or found


def _ref(repository: Path, revision: str) -> str | None:
    """Return the commit that a branch or tag names, None for what is neither."""
    try:
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
