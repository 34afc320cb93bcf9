"""Positions of prompts whose model leaves them to the caller, and their part behind a shared prefix."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm.models
import pytest

from vlmd_bridge.engine.prompt import _rope_index
from vlmd_bridge.engine.rows.batch_prefix import _sliced

pytestmark = pytest.mark.model

_MODELS = Path(mlx_vlm.models.__path__[0])
_WITH_POSITIONS = sorted(
    path.parent.name for path in _MODELS.glob("*/language.py") if "    def get_rope_index(" in path.read_text()
)


class _Language:
    """Takes what the language model of an architecture takes, and computes nothing."""

    def __init__(self, architecture: str) -> None:
        module = importlib.import_module(f"mlx_vlm.models.{architecture}.language")
        whole = inspect.signature(module.LanguageModel.get_rope_index)
        signature = whole.replace(parameters=list(whole.parameters.values())[1:])

        def get_rope_index(*given: Any, **named: Any) -> tuple[str, str]:
            signature.bind(*given, **named)
            return "positions", "deltas"

        get_rope_index.__signature__ = signature  # type: ignore[attr-defined]
        self.get_rope_index = get_rope_index


@pytest.mark.parametrize("architecture", _WITH_POSITIONS)
def test_every_architecture_can_be_asked_for_the_positions_of_a_text(architecture: str) -> None:
    raw = {"input_ids": mx.zeros((1, 5), dtype=mx.int32)}
    positions: Any
    deltas: Any
    positions, deltas = _rope_index(_Language(architecture), raw)
    if not isinstance(positions, str):  # its method wants more than a text has
        assert (positions.tolist(), deltas.tolist()) == ([[0, 1, 2, 3, 4]], [[0]])


@pytest.mark.parametrize("architecture", ["cohere_compass", "ernie4_5_moe_vl", "glm4v", "glm_ocr"])
def test_grids_are_handed_on(architecture: str) -> None:
    raw = {"input_ids": mx.zeros((1, 5), dtype=mx.int32), "image_grid_thw": mx.array([[1, 2, 2]])}
    positions: Any = _rope_index(_Language(architecture), raw)[0]
    assert positions == "positions"


@pytest.mark.parametrize("shape", [(1, 9), (3, 1, 9), (1, 9, 3)])
def test_the_positions_behind_a_prefix(shape: tuple[int, ...]) -> None:
    positions = mx.broadcast_to(mx.arange(9).reshape([9 if size == 9 else 1 for size in shape]), shape)
    rest = _sliced({"position_ids": positions, "inputs_embeds": positions, "other": 1}, 4, None)
    assert rest.keys() == {"position_ids", "other"}
    assert rest["position_ids"].shape == tuple(5 if size == 9 else size for size in shape)
    assert set(rest["position_ids"].flatten().tolist()) == {4, 5, 6, 7, 8}
