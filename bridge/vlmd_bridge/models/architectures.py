"""Which architectures the installed mlx-vlm and mlx-lm know, told from their files: importing them costs a second."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path

_REMAPPING = re.compile(r"^MODEL_REMAPPING(?::[^=]*)? = (\{.*?^\})", re.MULTILINE | re.DOTALL)


def is_installed(package: str) -> bool:
    """Return whether `package` (``mlx_vlm``, ``mlx_lm``) is there to ask."""
    return _folder(package) is not None


def knows_architecture(package: str, model_type: str) -> bool:
    """Return whether `package` has a model of `model_type`, under its own name or the one it maps it to."""
    folder = _folder(package)
    if folder is None:
        return False
    name = _remapping(package).get(model_type.lower(), model_type.lower())
    # The type comes from a file that anyone may have written: only a plain name is looked up on disk.
    if not name.isidentifier():
        return False
    module = folder / "models" / name
    return (module / "__init__.py").is_file() or module.with_suffix(".py").is_file()


@functools.cache
def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@functools.cache
def _remapping(package: str) -> dict[str, str]:
    folder = _folder(package)
    source = (folder / "utils.py").read_text(encoding="utf-8") if folder is not None else ""
    match = _REMAPPING.search(source)
    return dict(ast.literal_eval(match[1])) if match is not None else {}
