"""The batch width is the smallest of nearly the best throughput, within memory; a width that was set stands."""

from __future__ import annotations

import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, vision_backend
from vlmd_bridge.engine import memory
from vlmd_bridge.engine.batch import FRONT_SLOTS
from vlmd_bridge.engine.memory import MemoryBudget
from vlmd_bridge.engine.rows import width as width_module
from vlmd_bridge.engine.rows.language import Language
from vlmd_bridge.engine.rows.slots import RowCache
from vlmd_bridge.engine.rows.width import DEFAULT_WIDTH, _smallest


@pytest.mark.parametrize(
    ("steps_ms", "widest", "expected"),
    [
        ({1: 4, 2: 4, 4: 4, 8: 5, 16: 8}, 100, 16),  # overhead: wider is better
        ({1: 4, 2: 4, 4: 4.1, 8: 8, 16: 16}, 100, 4),  # arithmetic from 4 rows on
        ({1: 4, 2: 4, 4: 4.1, 8: 8, 16: 15.8}, 100, 4),  # 16 is 4 % better: not worth its steps
        ({1: 2000}, 100, DEFAULT_WIDTH),  # too slow to measure
        ({1: 4, 2: 4}, 2, 2),  # no memory for more
    ],
)
def test_the_smallest_width_that_is_nearly_best(steps_ms: dict[int, float], widest: int, expected: int) -> None:
    assert _smallest(steps_ms, widest) == expected


@pytest.mark.model
def test_width_is_measured_at_load(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with vision_backend(tiny_path("qwen3_5"), Pictures(), width=0) as backend:
        assert backend.batch.ordinary_width == backend.info.width in width_module._WIDTHS
        assert f"{backend.info.width} rows a batch" in capfd.readouterr().err
    with vision_backend(tiny_path("qwen3_5"), Pictures(), width=0, off=("measured_width",)) as backend:
        assert backend.batch.ordinary_width == backend.info.width == DEFAULT_WIDTH
    with vision_backend(tiny_path("qwen3_5"), Pictures(), width=3) as backend:
        assert backend.batch.ordinary_width == backend.info.width == 3
    # Memory for two counted rows, and for those in front besides.
    row_bytes = _row_bytes(backend._language)
    wanted = (2 + FRONT_SLOTS) * row_bytes + row_bytes // 2
    monkeypatch.setattr(memory, "_free_bytes", lambda weight_bytes: int(wanted / memory._ROWS_SHARE))
    with vision_backend(tiny_path("qwen3_5"), Pictures(), width=0) as backend:
        assert backend.info.width <= 2


@pytest.mark.model
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_a_tokens_bytes_are_those_of_the_configuration(name: str, tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path(name), Pictures()) as backend:
        language = backend._language
        assert language is not None
        state = language.begin()
        language.prefill(state, [0] * width_module._ROW_TOKENS, width_module._blank(language), 0)
        growing = sum(array.nbytes for layer in state.layers if isinstance(layer, RowCache) for array in layer.state)
        assert MemoryBudget.of(backend.info).token_bytes == growing // width_module._ROW_TOKENS


def _row_bytes(language: Language | None) -> int:
    assert language is not None
    state = language.begin()
    tokens = width_module._ROW_TOKENS
    language.prefill(state, [0] * tokens, width_module._blank(language), 0)
    return sum(array.nbytes for array in state.arrays()) * width_module._COUNTED_ROW_TOKENS // tokens
