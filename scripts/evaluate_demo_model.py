"""Print a checkpoint's figures on frames it never saw, drawn at 1280x800 and answered greedily through mlx-vlm.

python scripts/evaluate_demo_model.py bridge/vlmd_bridge/demo/model --frames 400
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from demo_training.openblas import preload_openblas

preload_openblas(threads=2)

from demo_training.evaluation import Generator, evaluate  # noqa: E402 - after OpenBLAS
from vlmd_bridge.demo import MODEL_PATH, recording  # noqa: E402

SEEN_SIZE = (256, 160)


def full(image: Image.Image) -> Image.Image:
    """Leave the resize to mlx-vlm: one bicubic step from full size."""
    return image


def reduced(image: Image.Image) -> Image.Image:
    """Average down first, as the daemon does."""
    return image.resize(SEEN_SIZE, Image.Resampling.BICUBIC, reducing_gap=2.0)


def jpeg(image: Image.Image) -> Image.Image:
    """Write a JPEG and have it decoded at a fraction of its size."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80)
    opened = Image.open(encoded)
    opened.draft("RGB", SEEN_SIZE)
    return opened.convert("RGB").resize(SEEN_SIZE, Image.Resampling.BICUBIC)


# The ways by which a picture reaches the model.
PATHS: dict[str, Callable[[Image.Image], Image.Image]] = {"full": full, "reduced": reduced, "jpeg": jpeg}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_PATH, help="the checkpoint")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--questions", type=int, default=200, help="frames that each question is asked about")
    parser.add_argument("--seed", type=int, default=4242, help="of the frames; training never uses this one")
    parser.add_argument("--interleave", type=int, default=4, help="frames an interleaved prompt")
    parser.add_argument("--path", choices=PATHS, default="full", help="how pictures are made small")
    arguments = parser.parse_args()
    see = PATHS[arguments.path]
    frames = [replace(frame, image=see(frame.image)) for frame in recording(arguments.seed, arguments.frames)]
    for score in evaluate(
        Generator(arguments.folder), frames, interleave=arguments.interleave, questions=arguments.questions
    ):
        print(score, flush=True)


if __name__ == "__main__":
    main()
