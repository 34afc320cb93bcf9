"""The trainer's own forward pass computes what mlx-vlm's does, for every kind of prompt it trains on."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.model

# Scripts are no package: they are run from their folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

# Float32 sums in another order.
_TOLERANCE = 1e-4
_FRAMES = 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, Any]:
    pytest.importorskip("mlx_vlm")
    from demo_training.batches import Batcher
    from demo_training.checkpoint import new_model, train_tokenizer, write_static_files
    from demo_training.forward import Forward
    from demo_training.pool import FramePool

    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(1)
    write_static_files(folder / "model", tokenizer)
    pool = FramePool(folder / "frames", seed=1, count=_FRAMES, renderers=1)
    for process in pool.start_rendering():
        process.join()
    assert pool.ready() == _FRAMES
    model = new_model(folder / "model")
    return model, Forward(model), Batcher(tokenizer, pool, {}), pool


@pytest.mark.parametrize("kind", ["single", "interleaved", "question", "chat"])
def test_logits_equal_those_of_mlx_vlm(parts: tuple[Any, Any, Any, Any], kind: str) -> None:
    import mlx.core as mx
    from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLImageProcessor

    from demo_training import prompts

    model, forward, batcher, pool = parts
    rng = random.Random(kind)
    truths = [pool.truth(i) for i in range(_FRAMES)]
    examples = {
        "single": lambda: [prompts.single(rng, i, truths[i]) for i in range(3)],
        "interleaved": lambda: [prompts.interleaved(rng, (i, i + 1, i + 2), truths[i : i + 3]) for i in range(2)],
        "question": lambda: [prompts.question(rng, i, truths[i]) for i in range(3)],
        "chat": lambda: [prompts.chat(rng) for _ in range(3)],
    }[kind]()
    batch = batcher.batch(examples)
    ours = forward.logits(model, batch)
    processor = Qwen3VLImageProcessor(patch_size=16, min_pixels=1024, max_pixels=256 * 160)
    start = 0
    for row, example in enumerate(examples):
        own = batch.rows == row
        answer = batch.targets[own].tolist()
        prompt = batcher.prompt_ids(example)
        inputs: dict[str, Any] = {}
        if example.frames:
            seen = processor([Image.fromarray(pool.pixels[i]) for i in example.frames])
            inputs = {name: mx.array(seen[name]) for name in ("pixel_values", "image_grid_thw")}
        theirs = model(mx.array([prompt + answer[:-1]]), **inputs).logits[0, len(prompt) - 1 :]
        difference = np.abs(np.array(theirs) - np.array(ours[start : start + len(answer)])).max()
        assert difference < _TOLERANCE
        start += len(answer)
