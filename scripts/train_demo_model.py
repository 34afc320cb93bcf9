"""Train the demo model from nothing: frames, tokenizer, weights.

A run is a folder. Started again with the same folder it goes on where its last checkpoint was. The best checkpoint so
far lies in the folder's `model`, ready for `mlx_vlm.load`.

    nice -n 19 python scripts/train_demo_model.py --folder /tmp/demo-run --budget-minutes 85
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

from demo_training.openblas import preload_openblas

# Two processes of one thread each; see demo_training.exchange.
_RANKS = 2
preload_openblas(threads=1)

from mlx.utils import tree_flatten  # noqa: E402

from demo_training.checkpoint import new_model, train_tokenizer, write_static_files  # noqa: E402 - after OpenBLAS
from demo_training.exchange import Exchange  # noqa: E402
from demo_training.forward import make_trainee  # noqa: E402
from demo_training.pool import FramePool, description_numbers  # noqa: E402
from demo_training.trainer import HELD_OUT_FRAMES, Settings, train  # noqa: E402

# Training begins with this many frames; the others are rendered meanwhile.
_FIRST_FRAMES = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder")
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--frames", type=int, default=30_000, help="frames in the pool (123 kB each on disk)")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--budget-minutes", type=float, default=85.0, help="length of the run")
    bound.add_argument("--steps", type=int, help="length of the run in steps, which is reproducible")
    arguments = parser.parse_args()
    settings = Settings(
        folder=arguments.folder,
        seed=arguments.seed,
        frames=arguments.frames,
        first_frames=min(_FIRST_FRAMES, arguments.frames),
        budget_s=arguments.budget_minutes * 60,
        steps=arguments.steps,
    )
    model_folder = settings.folder / "model"
    if not (model_folder / "config.json").exists():
        write_static_files(model_folder, train_tokenizer(settings.seed))
    held_out = FramePool(settings.folder / "held-out", seed=settings.seed + 1, count=HELD_OUT_FRAMES)
    for process in held_out.start_rendering():
        process.join()
    pool = FramePool(settings.folder / "frames", seed=settings.seed, count=settings.frames)
    renderers = pool.start_rendering()
    # All of them where the run must be reproducible: a step draws from the frames that are ready.
    pool.wait(settings.frames if settings.steps is not None else settings.first_frames)
    context = multiprocessing.get_context("spawn")
    labels = description_numbers(pool, settings.first_frames)
    trainee = make_trainee(new_model(model_folder), len(labels))
    size = sum(value.size for _, value in tree_flatten(trainee.parameters()))
    exchange = Exchange(context, _RANKS, size)
    try:
        others = [context.Process(target=train, args=(rank, settings, exchange)) for rank in range(1, _RANKS)]
        for other in others:
            other.start()
        train(0, settings, exchange)
        for process in (*others, *renderers):
            process.join()
    finally:
        exchange.close()


if __name__ == "__main__":
    main()
