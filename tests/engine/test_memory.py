"""What rows hold together is bounded, given back while others run, and changes no answer."""

from __future__ import annotations

import math

import mlx.core as mx
import msgspec
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_alone, text_backend, vision_backend
from vlmd_bridge.demo import MODEL_PATH
from vlmd_bridge.engine import memory
from vlmd_bridge.engine.backend import Backend
from vlmd_bridge.engine.batch import Batch
from vlmd_bridge.engine.rows.places import SMALL_TOKENS
from vlmd_bridge.workers.messages import Finished, Start

_SHORT, _LONG = "What is this?", "And then they opened another window. "


def _answers(backend: Backend, batch: Batch, starts: list[Start]) -> tuple[dict[int, str], float]:
    """Run `starts` together and return their texts, and the most tokens that rows beside others came to count as."""
    for start in starts:
        backend.start(start)
    texts: dict[int, str] = {}
    most = 0
    while len(texts) < len(starts):
        texts |= {event.seq: event.text for event in backend.step() if isinstance(event, Finished)}
        lengths = [row.prompt.longest for row in batch._running.values() if row.prompt is not None]
        if len(lengths) > 1:
            most = max(most, len(lengths) * max(lengths))
    return texts, most


def _alone(backend: Backend, start: Start) -> str:
    event = run_alone(backend, start)
    assert isinstance(event, Finished)
    return event.text


@pytest.mark.model
def test_a_long_rows_memory_is_given_back_while_others_run() -> None:
    with vision_backend(MODEL_PATH, Pictures(), width=4) as backend:
        language = backend._language
        assert language is not None
        starts = [ask(seq, f"{_SHORT} {seq}", max_tokens=150) for seq in range(3)]
        long = ask(9, _LONG * 75, max_tokens=4)
        alone = {start.seq: _alone(backend, start) for start in (*starts, long)}
        texts: dict[int, str] = {}
        # Tokens that there is room for, and MLX's bytes: while the long row is there, and behind it.
        held: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for start in starts:
            backend.start(start)
        while backend.batch.running < 3:
            backend.step()
        backend.start(long)
        while len(texts) < 4:
            if backend.batch.running:
                held[9 in texts].append((language.held_tokens, mx.get_active_memory()))
            texts |= {event.seq: event.text for event in backend.step() if isinstance(event, Finished)}
        assert texts == alone
        (most, most_bytes), (left, left_bytes) = max(held[False]), min(held[True])
        assert len(held[True]) > 5 and most > SMALL_TOKENS >= max(held[True])[0]
        assert left_bytes < most_bytes - (most - left) * memory.MemoryBudget.of(backend.info).token_bytes / 2


@pytest.mark.model
@pytest.mark.parametrize("kind", ["vision", "mlx_vlm", "text"])
def test_rows_wait_for_memory_and_a_lone_row_runs(kind: str, tiny_path: TinyPath) -> None:
    opened = (
        text_backend(tiny_path("llama"), width=4)
        if kind == "text"
        else vision_backend(tiny_path("qwen3_vl"), Pictures(), width=4, off=("own_decode",) * (kind == "mlx_vlm"))
    )
    with opened as backend:
        starts = [ask(seq, f"{_SHORT} {seq}", max_tokens=30) for seq in range(6)]
        starts.insert(2, ask(8, _LONG * 4, max_tokens=60))
        starts.insert(5, ask(9, _LONG * 12, max_tokens=30))  # more than all may hold
        starts.append(msgspec.structs.replace(ask(10, _LONG * 12, max_tokens=10), front=True))
        alone = {start.seq: _alone(backend, start) for start in starts}
        assert math.isfinite(backend.batch.held_tokens)
        assert _answers(backend, backend.batch, starts)[1] > 500
        backend.batch.held_tokens = 500
        texts, most = _answers(backend, backend.batch, starts)
        assert texts == alone
        assert 0 < most <= 500


@pytest.mark.model
def test_a_row_that_waits_for_memory_can_be_cancelled(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        backend.batch.held_tokens = 1
        for seq in range(3):
            backend.start(ask(seq, f"{_SHORT} {seq}", max_tokens=20))
        for _ in range(5):
            assert not backend.step()
        assert backend.batch.running == 1 and len(backend.batch) == 3
        backend.remove(1)
        ended: list[int] = []
        while len(backend.batch):
            ended += [event.seq for event in backend.step()]
        assert ended == [0, 2]


def test_what_others_hold_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Memory:
        available = 6_000

    monkeypatch.setattr("psutil.virtual_memory", _Memory)
    info: dict[str, object] = {}
    monkeypatch.setattr("mlx.core.device_info", lambda: info)
    assert memory._free_bytes(2_000) == 6_000
    info["max_recommended_working_set_size"] = 7_000  # as on Metal
    assert memory._free_bytes(2_000) == 5_000
    assert memory._free_bytes(8_000) == 0
