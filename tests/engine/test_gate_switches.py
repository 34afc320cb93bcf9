"""The correctness gate for every optimisation: rows of any kind equal mlx-vlm's own decoding of each row alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_all, run_alone, vision_backend
from tests.support.gate import Traced, compare, keep_rows, of_all_kinds, run_at_random
from tests.support.tiny_models import TINY_VISION_MODELS
from vlmd_bridge.demo import MODEL_PATH, recording
from vlmd_bridge.engine.switches import NAMES
from vlmd_bridge.record import SINGLE_INSTRUCTIONS, parse_record, single_label
from vlmd_bridge.workers.messages import Finished, RecordConstraint, Start

pytestmark = pytest.mark.model

# Those that decide how rows are decoded; `Switches` documents them.
DECODING = ("own_decode", "forced_tokens", "batched_masks", "shared_prefix")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows of all kinds on one model, and what each is alone."""

    pictures: Pictures
    starts: list[Start]
    alone: dict[int, Traced]


MakeWork = Callable[[str], Work]


@pytest.fixture(scope="module")
def work(tiny_path: TinyPath) -> MakeWork:
    """Return a function from the name of a tiny model to its rows, run alone once with every optimisation off."""
    done: dict[str, Work] = {}

    def make(name: str) -> Work:
        if name not in done:
            pictures = Pictures()
            starts = of_all_kinds(pictures, 28 if name.startswith("qwen2_5") else 32)
            with (
                vision_backend(tiny_path(name), pictures, trace=True, off=NAMES) as backend,
                pytest.MonkeyPatch.context() as patch,
            ):
                alone = keep_rows(backend, patch)
                for start in starts:
                    run_alone(backend, start)
            done[name] = Work(pictures=pictures, starts=starts, alone=alone)
        return done[name]

    return make


@pytest.mark.parametrize("off", ["nothing", *DECODING])
@pytest.mark.parametrize("name", [model.name for model in TINY_VISION_MODELS])
def test_rows_equal_themselves_alone(
    name: str, off: str, work: MakeWork, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work(name)
    names = () if off == "nothing" else (off,)
    with vision_backend(tiny_path(name), expected.pictures, width=4, trace=True, off=names) as backend:
        together = keep_rows(backend, monkeypatch)
        idle_bytes = []
        for seed in range(2 if off == "nothing" else 1):
            together.clear()
            removed = run_at_random(backend, expected.starts, seed)
            compare(f"{name} without {off}", together, expected.alone, removed=removed)
            backend.idle()
            # The first time, the vision tower's tables for these pictures are new.
            idle_bytes.append(mx.get_active_memory())
        assert idle_bytes[-1] <= idle_bytes[0], "a batch that ended keeps memory"


def _records(off: tuple[str, ...], pictures: Pictures, starts: list[Start]) -> list[str]:
    with vision_backend(MODEL_PATH, pictures, width=8, off=off) as backend:
        ended = run_all(backend, starts)
    texts = []
    for seq in sorted(ended):
        event = ended[seq]
        assert isinstance(event, Finished)
        texts.append(event.text)
    return texts


def test_the_demo_model_writes_the_same_records() -> None:
    pictures = Pictures()
    starts = []
    for seq, frame in enumerate(recording(7, 20, (256, 160))):
        picture = pictures.put(frame.image.convert("RGB").tobytes(), 256, 160)
        text = SINGLE_INSTRUCTIONS + single_label(float(seq))
        starts.append(ask(seq, text, picture, max_tokens=500, constraint=RecordConstraint()))
    expected = _records(NAMES, pictures, starts)
    assert all(parse_record(text) is not None for text in expected) and len(set(expected)) > 12
    for off in ((), *((name,) for name in DECODING)):
        assert _records(off, pictures, starts) == expected, f"without {off}"
