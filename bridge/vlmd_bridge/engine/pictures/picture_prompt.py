"""Prompts with pictures, put together from parts: the text's tokens, each picture's features, and their positions.

The model's own way (its processor, then `get_input_embeddings`) tokenizes everything anew, looks for the pictures among
the tokens and builds the positions as lists; here only what differs between two frames is computed.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from vlmd_bridge.engine.checkpoint import Checkpoint
from vlmd_bridge.engine.pictures.patches import Grid, PatchLayout
from vlmd_bridge.engine.pictures.vision_tower import Features, Tower, tower_of
from vlmd_bridge.workers.messages import Picture

# Between two pictures there are few different texts: the template's, the instructions, labels.
_CACHED_TEXTS = 256
_MAX_CACHED_CHARS = 16 * 1024

# The shapes of prompts: of a stream of frames a few, since labels differ in length.
_CACHED_SHAPES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The tokens of a prompt; `spans` are those of its pictures, from the first to behind the last."""

    token_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    grids: tuple[Grid, ...]


class PicturePrompts:
    """Makes a vision model's inputs. Everything but the towers' own thread runs on the thread of MLX."""

    def __init__(self, checkpoint: Checkpoint, arena: mmap.mmap, patches: PatchLayout, tower: Tower) -> None:
        self._arena = arena
        self._patches = patches
        self._tower = tower
        self._tokenizer = checkpoint.tokenizer
        self._language_model = checkpoint.model.language_model
        self._image_token = str(checkpoint.processor.image_token)
        self._image_id = int(checkpoint.model.config.image_token_id)
        self._start_id = int(checkpoint.model.config.vision_start_token_id)
        self._deepstack = checkpoint.model_type == "qwen3_vl"
        self._short_tokens = lru_cache(maxsize=_CACHED_TEXTS)(self._encode)
        self._positions = lru_cache(maxsize=_CACHED_SHAPES)(self._rope_index)
        # Ahead of the rows that wait for a slot: the model decodes others meanwhile.
        self._thread = ThreadPoolExecutor(1, "vlmd-tower") if tower.threads else None
        self._ahead: dict[int, list[Future[Features]]] = {}

    @classmethod
    def of(cls, checkpoint: Checkpoint, arena: mmap.mmap) -> PicturePrompts | None:
        """Return them for a model whose parts are known to be equal, else None."""
        patches = PatchLayout.of(getattr(checkpoint.processor, "image_processor", None))
        # A tokenizer that begins every text with a token cannot be given a prompt in pieces.
        if patches is None or checkpoint.tokenizer("", add_special_tokens=True).input_ids:
            return None
        tower = tower_of(checkpoint.model, checkpoint.model_type, patches)
        return None if tower is None else cls(checkpoint, arena, patches, tower)

    def begin(self, seq: int, pictures: Sequence[Picture]) -> None:
        """Have the features of `pictures` computed beside what runs, where the tower allows it."""
        if self._thread is not None and pictures:
            self._ahead[seq] = [self._thread.submit(*self._task(picture)) for picture in pictures]

    def drop(self, seq: int) -> None:
        """Forget what was begun for `seq`."""
        for future in self._ahead.pop(seq, []):
            future.cancel()

    def drop_all(self) -> None:
        """Forget everything that was begun."""
        for seq in list(self._ahead):
            self.drop(seq)

    def layout(self, rendered: str, pictures: Sequence[Picture]) -> Layout | None:
        """Return the tokens of a prompt, or None when its pictures do not stand where the model looks for them."""
        first, *others = rendered.split(self._image_token)
        if len(others) != len(pictures):
            return None
        token_ids = list(self._tokens(first))
        grids = tuple(self._patches.grid(picture.width, picture.height) for picture in pictures)
        spans = []
        for grid, text in zip(grids, others, strict=True):
            if not token_ids or token_ids[-1] != self._start_id:
                return None
            begin = len(token_ids)
            token_ids += [self._image_id] * grid.tokens
            spans.append((begin, len(token_ids)))
            token_ids += self._tokens(text)
        return Layout(token_ids=token_ids, spans=tuple(spans), grids=grids)

    def inputs(self, seq: int, layout: Layout, pictures: Sequence[Picture]) -> dict[str, Any]:
        """Return the language model's keyword arguments for the prompt of `seq`."""
        features = self._features(seq, pictures)
        token_ids = mx.array([layout.token_ids])
        embedded = self._language_model.model.embed_tokens(token_ids)
        parts, at = [], 0
        for (begin, end), each in zip(layout.spans, features, strict=True):
            parts += [embedded[:, at:begin], mx.array(each.rows)[None].astype(embedded.dtype)]
            at = end
        parts.append(embedded[:, at:])
        grids, position_ids, rope_deltas = self._positions(len(layout.token_ids), layout.spans, layout.grids)
        inputs: dict[str, Any] = {
            "image_grid_thw": grids,
            "inputs_embeds": mx.concatenate(parts, axis=1),
            "position_ids": position_ids,
            "rope_deltas": rope_deltas,
        }
        if self._deepstack:
            inputs["visual_pos_masks"] = token_ids == self._image_id
            layers = zip(*(each.deepstack for each in features), strict=True)
            inputs["deepstack_visual_embeds"] = [mx.concatenate(list(map(mx.array, layer))) for layer in layers]
        return inputs

    def _features(self, seq: int, pictures: Sequence[Picture]) -> list[Features]:
        begun = self._ahead.pop(seq, None)
        if begun is None:
            return [run(*arguments) for run, *arguments in map(self._task, pictures)]
        features = []
        for future, picture in zip(begun, pictures, strict=True):
            # One that waits behind other rows' pictures is faster computed here.
            if future.cancel():
                run, *arguments = self._task(picture)
                features.append(run(*arguments))
            else:
                features.append(future.result())
        return features

    def _task(self, picture: Picture) -> tuple[Any, ...]:
        """Return what computes the features of `picture`, which it has read, and the arguments."""
        grid = self._patches.grid(picture.width, picture.height)
        pixels = np.frombuffer(self._arena, np.uint8, picture.width * picture.height * 3, picture.offset)
        if self._tower.threads:
            pixels = pixels.copy()  # the picture may be gone from the arena before its turn comes
        return self._run, pixels, picture, grid, self._tower.tables(grid)

    def _run(self, pixels: Any, picture: Picture, grid: Grid, tables: Any) -> Features:
        return self._tower.run(self._patches.cut(pixels, picture.width, picture.height), grid, tables)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return self._short_tokens(text) if len(text) <= _MAX_CACHED_CHARS else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _rope_index(
        self, length: int, spans: tuple[tuple[int, int], ...], grids: tuple[Grid, ...]
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Return the grids, position ids and rope deltas of a prompt: they depend on where its pictures stand alone."""
        token_ids = np.full((1, length), -1)  # any text
        for begin, end in spans:
            token_ids[:, begin - 1] = self._start_id
            token_ids[:, begin:end] = self._image_id
        thw = mx.array([grid.thw for grid in grids])
        mask = mx.ones((1, length), dtype=mx.int64)
        position_ids, deltas = self._language_model.get_rope_index(mx.array(token_ids), thw, None, mask)
        mx.eval(thw, position_ids, deltas)
        return thw, position_ids, deltas
