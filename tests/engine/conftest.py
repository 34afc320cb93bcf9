"""Tiny checkpoints, built once for a run of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_models import TINY_OTHER_MODELS, TINY_VISION_MODELS, TinyModel, build_tiny_model
from tests.support.tiny_text_models import TINY_TEXT_MODELS, build_tiny_text_model
from vlmd_bridge.engine.platform import choose_blas, forbid_downloads

# Here and not in a fixture: test modules import mlx when they are collected, and BLAS is chosen before that.
forbid_downloads()
choose_blas(1)

_SHORT_CONTEXT = TinyModel(name="short_context", model_type="qwen3_vl", context=200)

_SHORT_TEXT = TinyModel(name="short_text", model_type="llama", context=200)
_TEXT = (*TINY_TEXT_MODELS, _SHORT_TEXT)
_MODELS = (*TINY_VISION_MODELS, *TINY_OTHER_MODELS, *_TEXT, _SHORT_CONTEXT)

TinyPath = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> TinyPath:
    """Return a function from the name of a tiny model to its folder, built when first asked for."""
    root = tmp_path_factory.mktemp("tiny")
    built: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in built:
            model = _named(name)
            build = build_tiny_text_model if model in _TEXT else build_tiny_model
            built[name] = build(model, root / name)
        return built[name]

    return path


def _named(name: str) -> TinyModel:
    return next(model for model in _MODELS if model.name == name)
