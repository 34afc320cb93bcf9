"""The correctness gate: a row of a batch gets the tokens and log-probabilities that it gets alone, seeded rows too.

mlx-vlm's batching has been silently wrong (rows prefilled together lose deepstack features; chunked prefill with
images), so this decides whether a version or a change may be used.
"""

from __future__ import annotations

import msgspec
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_alone, text_backend, vision_backend
from tests.support.gate import compare, in_words, keep_rows, mixed, requests, run_together, stock_rows
from tests.support.tiny_models import TINY_OTHER_MODELS, TINY_VISION_MODELS
from tests.support.tiny_text_models import TINY_TEXT_MODELS
from vlmd_bridge.engine.template import pictures_of
from vlmd_bridge.workers.messages import RegexConstraint

pytestmark = pytest.mark.model


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("name", [model.name for model in TINY_VISION_MODELS])
def test_a_batched_row_equals_the_row_alone(
    name: str, grammar: bool, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures()
    unit = 28 if name.startswith("qwen2_5") else 32
    with vision_backend(tiny_path(name), pictures, width=4, trace=True) as backend:
        starts = mixed(requests(pictures, unit, grammar=grammar))
        traces = keep_rows(backend, monkeypatch)
        assert run_together(backend, starts, removed=2) == 4
        together = dict(traces)
        traces.clear()
        assert backend.prefixes is not None
        saved_tokens = backend.prefixes.saved_tokens
        backend.batch.close()
        backend.prefixes = None
        for start in starts:
            run_alone(backend, start)
    compare(name, together, traces, removed={2})
    assert saved_tokens > 100  # else nothing was said about rows with a shared prefix


@pytest.mark.parametrize("name", [model.name for model in TINY_OTHER_MODELS])
def test_a_batched_row_equals_mlx_vlm_without_a_batch(
    name: str, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that keep the positions of their last prompt to themselves: every row has its own all the same."""
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures, width=4, trace=True) as backend:
        starts = requests(pictures, 28, grammar=False)
        if name == "paddleocr_vl":  # mlx-vlm's processor for it knows no second picture
            starts = [start for start in starts if len(pictures_of(start)) < 2]
        together = keep_rows(backend, monkeypatch)
        assert run_together(backend, starts, removed=2) == 4
        compare(name, together, stock_rows(backend, starts), removed={2})


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("name", [model.name for model in TINY_TEXT_MODELS])
def test_a_batched_text_row_equals_the_row_alone(
    name: str, grammar: bool, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with text_backend(tiny_path(name), width=4, trace=True) as backend:
        starts = mixed(in_words(requests(Pictures(), 32, grammar=grammar)))
        # Long enough to be prefilled in several steps, while other rows decode.
        starts.insert(3, ask(len(starts), "Many words to read before this. " * 40, max_tokens=12))
        if grammar:  # one kind beside the other
            pattern = RegexConstraint(pattern="[a-z]{2,12}( [a-z0-9]{3}){4}!")
            starts[1::3] = [msgspec.structs.replace(start, constraint=pattern) for start in starts[1::3]]
        traces = keep_rows(backend, monkeypatch)
        assert run_together(backend, starts, removed=2) == 4
        together = dict(traces)
        traces.clear()
        for start in starts:
            run_alone(backend, start)
    compare(name, together, traces, removed={2})
