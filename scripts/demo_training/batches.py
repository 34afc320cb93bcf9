"""Examples as arrays: tokens, rotary positions, patches, and what counts in the loss."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from demo_training.forward import GRID_COLUMNS, GRID_ROWS, IMAGE_TOKENS, Batch, to_patches
from demo_training.pool import FramePool
from demo_training.prompts import PICTURE, Example, detail_spans

# A token that only the picture can tell counts this much in the loss; the text form is learned anyway.
_DETAIL_WEIGHT = 3.0

_MERGED_ROWS = GRID_ROWS // 2
_MERGED_COLUMNS = GRID_COLUMNS // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    ids: list[int]
    answer: list[int]
    weights: list[float]


class Batcher:
    """Turns examples about a pool's frames into batches."""

    def __init__(self, tokenizer: Tokenizer, pool: FramePool, labels: Mapping[str, int]) -> None:
        """Take the tokenizer, the frames, and the number of each description for the auxiliary loss."""
        self._tokenizer = tokenizer
        self._pool = pool
        self._labels = labels
        self._image = _id(tokenizer, "<|image_pad|>")
        self._end = _id(tokenizer, "<|im_end|>")
        # Byte-level BPE writes a line feed as U+010A.
        self.newlines = [number for token, number in tokenizer.get_vocab().items() if "\u010a" in token]
        self._known: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            expanded = text.replace(PICTURE, PICTURE.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS))
            ids = self._tokenizer.encode(expanded, add_special_tokens=False).ids
            if len(self._known) < 20_000:
                self._known[text] = ids
        return ids

    def prompt_ids(self, example: Example) -> list[int]:
        """Return the tokens of an example's prompt."""
        return self._encode(example.prompt)

    def _row(self, example: Example) -> _Row:
        encoded = self._tokenizer.encode(example.answer, add_special_tokens=False)
        weights = [1.0] * (len(encoded.ids) + 1)
        for start, stop in detail_spans(example.answer):
            for i, (token_start, token_stop) in enumerate(encoded.offsets):
                if token_start < stop and token_stop > start:
                    weights[i] = _DETAIL_WEIGHT
        return _Row(ids=self._encode(example.prompt), answer=[*encoded.ids, self._end], weights=weights)

    def batch(self, examples: Sequence[Example], noise: random.Random | None = None) -> Batch:
        """Return `examples`, of one `shared` beginning, as a batch.

        Args:
            examples: The conversations.
            noise: Where a seed for slight noise on the pictures comes from; None leaves them as they are.
        """
        shared = self._encode(examples[0].shared) if examples[0].shared else []
        rows = [self._row(example) for example in examples]
        # The last answer token predicts nothing.
        length = max(len(row.ids) + len(row.answer) - 1 for row in rows)
        own = length - len(shared)
        ids = np.zeros((len(rows), length), np.int32)
        positions = np.zeros((3, len(rows), length), np.int32)
        visual = np.zeros((len(rows), length), np.int32)
        answer_at: list[int] = []
        seen = 0
        for i, row in enumerate(rows):
            tokens = [*row.ids, *row.answer[:-1]]
            if tokens[: len(shared)] != shared:
                raise ValueError(f"example {i} does not begin with the shared tokens")
            ids[i, : len(tokens)] = tokens
            is_image = ids[i] == self._image
            positions[:, i] = rotary_positions(is_image)
            count = int(is_image.sum())
            visual[i, is_image] = np.arange(seen + 1, seen + count + 1)
            seen += count
            first = i * own + len(row.ids) - 1 - len(shared)
            answer_at.extend(range(first, first + len(row.answer)))
        frames = [frame for example in examples for frame in example.frames]
        names = [self._pool.truth(frame).record.description for frame in frames]
        return Batch(
            patches=self._patches(frames, noise),
            prefix=np.array(shared, np.int32),
            ids=ids[:, len(shared) :],
            positions=positions,
            visual=visual[:, len(shared) :],
            answer_at=np.array(answer_at, np.int32),
            targets=np.array([token for row in rows for token in row.answer], np.int32),
            weights=np.array([weight for row in rows for weight in row.weights], np.float32),
            rows=np.repeat(np.arange(len(rows), dtype=np.int32), [len(row.answer) for row in rows]),
            labels=np.array([self._labels.get(name, -1) for name in names], np.int32),
        )

    def _patches(self, frames: Sequence[int], noise: random.Random | None) -> npt.NDArray[np.float32]:
        pixels = self._pool.pixels[list(frames)].astype(np.float32)
        if noise is not None:
            for picture in pixels:
                _disturb(picture, noise)
        return to_patches(pixels)


def _disturb(picture: npt.NDArray[np.float32], rng: random.Random) -> None:
    """Change some pictures' colours a little and make some grainy, in place."""
    if rng.random() < 0.5:
        for channel in range(3):
            picture[..., channel] *= rng.uniform(0.94, 1.06)
            picture[..., channel] += rng.uniform(-6, 6)
    if rng.random() < 0.2:
        grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(picture.shape, np.float32)
        picture += np.float32(rng.uniform(0.5, 4.0)) * grain
    np.clip(picture, 0, 255, out=picture)


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no {token}")
    return number


def rotary_positions(is_image: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the [3, L] time, row and column of each token, as Qwen's M-RoPE numbers them."""
    positions = np.zeros((3, len(is_image)), np.int32)
    rows, columns = np.divmod(np.arange(IMAGE_TOKENS), _MERGED_COLUMNS)
    i, position = 0, 0
    while i < len(is_image):
        if is_image[i]:
            stop = i + IMAGE_TOKENS
            positions[:, i:stop] = position + np.stack([np.zeros_like(rows), rows, columns])
            position += max(_MERGED_ROWS, _MERGED_COLUMNS)
            i = stop
        else:
            positions[:, i] = position
            position += 1
            i += 1
    return positions
