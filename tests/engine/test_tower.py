"""Pictures become the same patches, embeddings and records with our own tower as with the model's processor and tower.

The gate for the switch ``vision_tower``; ``test_gate.py`` compares rows of a batch with rows alone while it is on.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_all, vision_backend
from tests.support.tiny_models import TINY_VISION_MODELS
from vlmd_bridge.demo import MODEL_PATH, recording
from vlmd_bridge.engine.pictures.sized_cache import SizedCache
from vlmd_bridge.engine.pictures.vision_tower import MlxTower
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.images.sizes import fitted_size
from vlmd_bridge.record import SINGLE_INSTRUCTIONS, parse_record, single_label
from vlmd_bridge.workers.messages import Failed, Finished, Picture, RecordConstraint, Start

pytestmark = pytest.mark.model

NAMES = [model.name for model in TINY_VISION_MODELS]

# Float32 sums in another order, through a whole tower; values are of the order of 1.
TOLERANCE = 1e-4

# Columns and rows of tokens: small, square, thin either way, and windows of Qwen2.5-VL filled, cut and missed.
GRIDS = ((3, 2), (4, 4), (8, 1), (1, 9), (5, 3), (7, 9), (8, 8), (16, 4))


def _unit(backend: VisionBackend) -> int:
    assert backend.info.image_spec is not None
    return backend.info.image_spec.factor


def _prompts(pictures: Pictures, unit: int) -> list[Start]:
    """Return a prompt for each grid, and two with pictures between texts."""
    made = [pictures.random(i, unit * columns, unit * rows) for i, (columns, rows) in enumerate(GRIDS)]
    starts = [ask(i, f"Frame (timestamp: {10**i}s):", picture) for i, picture in enumerate(made)]
    parts: list[Picture | str] = []
    for i, picture in enumerate(made[:4]):
        parts += [f"Frame {i} (timestamp: {i}s):", picture]
    starts.append(ask(len(starts), *parts, "Describe the cat and the dog."))
    starts.append(ask(len(starts), made[0], made[1], made[0]))
    return starts


def _inputs(backend: VisionBackend, start: Start) -> tuple[list[int], dict[str, Any]]:
    prompt = backend.prompts.embed(start)
    arrays = {name: value for name, value in prompt.inputs.items() if not isinstance(value, list)}
    deepstack = {f"deepstack {i}": value for i, value in enumerate(prompt.inputs.get("deepstack_visual_embeds", []))}
    mx.eval(arrays, deepstack)
    return prompt.token_ids, arrays | deepstack


def _compare(ours: VisionBackend, stock: VisionBackend, starts: list[Start]) -> float:
    assert ours.prompts.pictures is not None and stock.prompts.pictures is None
    worst = 0.0
    for start in starts:
        (token_ids, inputs), (expected_ids, expected) = _inputs(ours, start), _inputs(stock, start)
        assert token_ids == expected_ids
        assert inputs.keys() == expected.keys()
        for name, value in inputs.items():
            assert value.shape == expected[name].shape, name
            difference = mx.abs(value.astype(mx.float32) - expected[name].astype(mx.float32)).max().item()
            assert isinstance(difference, float)
            worst = max(worst, difference)
            assert difference <= TOLERANCE, (start.seq, name, difference)
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_our_tower_equals_the_models_own(name: str, tiny_path: TinyPath) -> None:
    pictures = Pictures()
    folder = tiny_path(name)
    with vision_backend(folder, pictures) as ours, vision_backend(folder, pictures, off=("vision_tower",)) as stock:
        starts = _prompts(pictures, _unit(ours))
        print(f"{name}: embeddings at most {_compare(ours, stock, starts):.1e} apart")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("4bit")])
def test_patches_through_mlx_vlms_tower(name: str, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Metal, and with weights that NumPy does not compute with."""
    pictures = Pictures()
    folder = tiny_path(name)
    monkeypatch.setattr(
        "vlmd_bridge.engine.pictures.picture_prompt.tower_of",
        lambda model, _, layout: MlxTower(model.vision_tower, layout),
    )
    with vision_backend(folder, pictures) as ours, vision_backend(folder, pictures, off=("vision_tower",)) as stock:
        _compare(ours, stock, _prompts(pictures, _unit(ours)))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("4bit")])
def test_patches_equal_those_of_the_models_processor(name: str, tiny_path: TinyPath) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures) as backend:
        unit, prompts = _unit(backend), backend.prompts
        assert prompts.pictures is not None
        layout = prompts.pictures._patches
        for seed, (columns, rows) in enumerate(GRIDS):
            picture = pictures.random(seed, unit * columns, unit * rows)
            processed = prompts._processor.image_processor([prompts._image(picture)])
            pixels = np.frombuffer(pictures.buffer, np.uint8, picture.width * picture.height * 3, picture.offset)
            patches = layout.as_processed(layout.cut(pixels, picture.width, picture.height))
            assert np.array_equal(patches, np.asarray(processed["pixel_values"]))
            grid = layout.grid(picture.width, picture.height)
            assert list(grid.thw) == np.asarray(processed["image_grid_thw"])[0].tolist()


def test_tables_are_bounded_and_kept_once(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[SizedCache[Any, Any]] = []

    class Kept(SizedCache[Any, Any]):
        def __init__(self, make: Any, nbytes: Any, limit_bytes: int) -> None:
            super().__init__(make, nbytes, 12_000)
            caches.append(self)

    for module in ("checkpoint", "pictures.vision_tower"):
        monkeypatch.setattr(f"vlmd_bridge.engine.{module}.SizedCache", Kept)
    pictures = Pictures()
    with vision_backend(tiny_path("qwen3_vl"), pictures) as backend:
        positions, rotary, tables = caches
        for start in _prompts(pictures, _unit(backend))[: len(GRIDS)]:
            _inputs(backend, start)
            assert tables.held_bytes > 0 and (tables.held_bytes <= 12_000 or len(tables) == 1)
        assert not rotary.held_bytes and not positions.held_bytes  # mlx-vlm's own tower would ask these


def test_a_large_picture_is_attended_in_parts(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures()
    folder = tiny_path("qwen3_vl")
    with vision_backend(folder, pictures) as ours, vision_backend(folder, pictures, off=("vision_tower",)) as stock:
        start = ask(1, "Frame:", pictures.random(1, 256, 256))
        # 256 patches and two heads: a head at a time, then some rows of one, the last part smaller.
        for scores in (256 * 256, 256 * 48):
            monkeypatch.setattr("vlmd_bridge.engine.pictures.cpu_layers._SCORES", scores)
            monkeypatch.setattr("vlmd_bridge.engine.pictures.cpu_layers._ROWS", 100)
            _compare(ours, stock, [start])


def test_the_demo_writes_the_same_records() -> None:
    pictures = Pictures()
    starts = []
    with (
        vision_backend(MODEL_PATH, pictures, width=8) as ours,
        vision_backend(MODEL_PATH, pictures, width=8, off=("vision_tower",)) as stock,
    ):
        assert ours.info.image_spec is not None
        frames = recording(77_001, 16)
        for seq, frame in enumerate(frames):
            size = fitted_size(*frame.image.size, ours.info.image_spec)
            picture = pictures.put(frame.image.convert("RGB").resize(size).tobytes(), *size)
            label = SINGLE_INSTRUCTIONS + single_label(seq * 2.5)
            starts.append(ask(seq, label, picture, max_tokens=128, constraint=RecordConstraint()))
        records = [_records(run_all(backend, starts)) for backend in (ours, stock)]
    assert records[0] == records[1]
    assert sum(record == frame.record for record, frame in zip(records[0], frames, strict=True)) >= 13


def _records(ended: dict[int, Any]) -> list[object]:
    assert all(isinstance(event, Finished) for event in ended.values())
    return [parse_record(ended[seq].text) for seq in sorted(ended)]


def test_pictures_embedded_ahead_belong_to_their_row(tiny_path: TinyPath) -> None:
    """Started together, removed at every stage, and the arena's range written anew at once."""
    pictures = Pictures()
    with vision_backend(tiny_path("qwen3_vl"), pictures) as backend:
        unit = _unit(backend)
        starts = [ask(i, "Frame:", pictures.random(i, unit * 4, unit * 3), max_tokens=6) for i in range(12)]
        alone = {start.seq: run_all(backend, [start])[start.seq] for start in starts}
        for start in starts:
            backend.start(start)
        for seq in (0, 5, 11):
            backend.remove(seq)
            picture = next(part for part in starts[seq].parts if isinstance(part, Picture))
            pictures.buffer[picture.offset : picture.offset + 8] = bytes(8)
        ended: dict[int, Any] = {}
        while len(ended) < 9:
            ended |= {event.seq: event for event in backend.step()}
        assert {seq: event.text for seq, event in ended.items()} == {
            seq: event.text for seq, event in alone.items() if isinstance(event, Finished) and seq not in (0, 5, 11)
        }
        assert backend.prompts.pictures is not None
        assert not backend.prompts.pictures._ahead


def test_nothing_is_kept_for_a_prompt_that_is_refused(tiny_path: TinyPath) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path("short_context"), pictures) as backend:
        backend.start(ask(1, "word " * 300, pictures.random(1, 64, 64)))
        (event,) = backend.step()
        assert isinstance(event, Failed) and event.code == "context_length_exceeded"
        assert backend.prompts.pictures is not None
        assert not backend.prompts.pictures._ahead


def test_a_picture_that_does_not_fit_is_refused_as_ever(tiny_path: TinyPath) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path("qwen3_vl"), pictures) as backend:
        backend.start(ask(1, "Frame:", pictures.random(1, 100, 64)))
        (event,) = backend.step()
        assert isinstance(event, Failed)
        assert "100x64" in event.error
