"""A row in front is admitted first, into slots kept for it, and rows behind it wait for a bounded time."""

from __future__ import annotations

import msgspec
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_alone, vision_backend
from vlmd_bridge.engine.batch import FRONT_SLOTS
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.workers.messages import Delta, Finished, Start

pytestmark = pytest.mark.model

WIDTH = 4
_LONG = 400


def _front(seq: int, max_tokens: int) -> Start:
    start = ask(seq, "Which one is it?", max_tokens=max_tokens)
    return msgspec.structs.replace(start, stream=True, front=True)


def _filled(backend: VisionBackend) -> None:
    """Start two rows more than run at once, and run until the batch is full."""
    for seq in range(WIDTH + 2):
        backend.start(ask(seq, f"Frame {seq}:", max_tokens=_LONG))
    for _ in range(40):
        backend.step()
    assert backend.batch.running == WIDTH


def test_it_does_not_wait_for_a_slot(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=WIDTH) as backend:
        alone = run_alone(backend, _front(90, 6))
        _filled(backend)
        backend.start(_front(90, 6))
        # Its prefill, its first token, and one for the generator's look ahead.
        steps = next(i for i in range(1, 20) if any(isinstance(event, Delta) for event in backend.step()))
        assert steps <= 4
        assert backend.batch.running == WIDTH + 1
        ended = [event for _ in range(20) for event in backend.step() if isinstance(event, Finished)]
        assert isinstance(alone, Finished)
        assert [(event.seq, event.text) for event in ended] == [(90, alone.text)]
        assert backend.batch.running == WIDTH


def test_slots_kept_for_it_are_not_taken_by_others(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=WIDTH) as backend:
        _filled(backend)
        for seq in range(FRONT_SLOTS + 3):
            backend.start(_front(90 + seq, _LONG))
        for _ in range(20):
            backend.step()
        assert backend.batch.running == WIDTH + FRONT_SLOTS


def test_rows_behind_it_join_while_it_runs(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=WIDTH) as backend:
        backend.start(_front(90, _LONG))
        for seq in range(3):
            backend.start(ask(seq, f"Frame {seq}:", max_tokens=_LONG))
        for _ in range(40):
            assert not [event for event in backend.step() if isinstance(event, Finished)]
        assert backend.batch.running == 4


def test_rows_are_overtaken_so_often_only(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=WIDTH) as backend:
        for seq in range(2):
            backend.start(ask(seq, f"Frame {seq}:"))
        for seq in range(12):
            backend.start(_front(90 + seq, 4))
        assert [row.seq for row in backend.batch._waiting] == [*range(90, 98), 0, 1, *range(98, 102)]
        backend.reset()
