"""From turns to token ids and embeddings, through a vision model's own template and processor."""

from __future__ import annotations

import inspect
import mmap
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.utils import prepare_inputs, should_add_special_tokens
from PIL import Image

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.checkpoint import Checkpoint
from vlmd_bridge.engine.model_backend import Tokenized
from vlmd_bridge.engine.pictures.picture_prompt import PicturePrompts
from vlmd_bridge.engine.template import ChatTemplate, check_context, pictures_of
from vlmd_bridge.images.sizes import fitted_size
from vlmd_bridge.workers.messages import Count, Picture, Start


class PromptBuilder:
    """Builds prompts for one loaded model. Its pictures lie in `arena`; `vision_tower`: see `Switches`."""

    def __init__(self, checkpoint: Checkpoint, arena: mmap.mmap, *, vision_tower: bool = True) -> None:
        self._model = checkpoint.model
        self._processor = checkpoint.processor
        self._tokenizer = checkpoint.tokenizer
        self._spec = checkpoint.image_spec
        self._context_tokens = checkpoint.context_tokens
        self._arena = arena
        self._add_special_tokens = should_add_special_tokens(checkpoint.model_type, checkpoint.processor)
        self.template = ChatTemplate(checkpoint.processor, checkpoint.tokenizer, sees=True)
        # None for a model whose own processor and tower are used.
        self.pictures = PicturePrompts.of(checkpoint, arena) if vision_tower else None

    def render(self, prompt: Start | Count) -> str:
        """Return the prompt as text, ready for the answer.

        Raises:
            SequenceError: the template refuses it.
        """
        return self.template.render(prompt)

    def count(self, count: Count) -> int:
        """Return the prompt's tokens, those of its pictures among them, without a look at their pixels.

        Raises:
            SequenceError: the template or the processor refuses it. Beyond the context it is counted all the same.
        """
        blank = [Image.new("RGB", (picture.width, picture.height)) for picture in pictures_of(count)]
        return int(self._processed(self.render(count), blank)["input_ids"].size)

    def embed(self, start: Start) -> Tokenized:
        """Render, tokenize, preprocess the pictures and run the vision tower.

        Raises:
            SequenceError: the prompt leaves no room for an answer in the context, or a picture is not of a size that
                the model takes.
        """
        pictures = pictures_of(start)
        rendered = self.render(start)
        return self._put_together(start.seq, rendered, pictures) or self._embedded(rendered, pictures)

    def begin(self, start: Start) -> None:
        """Have the pictures of `start` embedded ahead of its turn, where that is possible."""
        pictures = pictures_of(start)
        if self.pictures is not None and all(map(self._fits, pictures)):
            self.pictures.begin(start.seq, pictures)

    def drop(self, seq: int) -> None:
        """Forget the pictures that were begun for `seq`."""
        if self.pictures is not None:
            self.pictures.drop(seq)

    def drop_all(self) -> None:
        """Forget every picture that was begun."""
        if self.pictures is not None:
            self.pictures.drop_all()

    def _put_together(self, seq: int, rendered: str, pictures: Sequence[Picture]) -> Tokenized | None:
        """Return the prompt by its known parts, or None when the model's own way is to be taken."""
        if self.pictures is None or not pictures:
            return None
        layout = self.pictures.layout(rendered, pictures) if all(map(self._fits, pictures)) else None
        if layout is None:
            return None
        check_context(len(layout.token_ids), self._context_tokens)
        return Tokenized(
            token_ids=layout.token_ids,
            inputs=self.pictures.inputs(seq, layout, pictures),
            opens_thinking=self.template.opens_thinking(rendered),
        )

    def _fits(self, picture: Picture) -> bool:
        """Whether the model takes `picture` as it is; if not, its processor or `_check_sizes` says why."""
        return fitted_size(picture.width, picture.height, self._spec) == (picture.width, picture.height)

    def _embedded(self, rendered: str, pictures: Sequence[Picture]) -> Tokenized:
        """Return the prompt as the model's own processor and code make it."""
        raw = self._processed(rendered, [self._image(picture) for picture in pictures])
        token_ids = raw["input_ids"].squeeze(0).tolist()
        check_context(len(token_ids), self._context_tokens)
        self._check_sizes(pictures, raw.get("image_grid_thw"))
        data = {k: v for k, v in raw.items() if k not in ("input_ids", "pixel_values", "attention_mask")}
        features = self._model.get_input_embeddings(
            raw["input_ids"], raw.get("pixel_values"), mask=raw.get("attention_mask"), **data
        )
        inputs = {**data, **{k: v for k, v in features.to_dict().items() if v is not None}}
        if inputs.get("position_ids") is None and hasattr(self._model.language_model, "_rope_deltas"):
            inputs |= self._positions(raw)
        return Tokenized(token_ids=token_ids, inputs=inputs, opens_thinking=self.template.opens_thinking(rendered))

    def _positions(self, raw: dict[str, Any]) -> dict[str, mx.array]:
        """Return the positions of the prompt that was embedded last, which the model kept or has yet to compute.

        A row must bring its own. What the model keeps then does no harm to other rows: glm_ocr decodes a row alone by
        the positions that it kept, whatever it is passed, and glm4v counts from 0 again where it kept no delta.
        """
        language = self._model.language_model
        position_ids = getattr(language, "_position_ids", None)
        rope_deltas = language._rope_deltas
        if position_ids is None:  # often a prompt without pictures; the delta is then the last picture's
            position_ids, rope_deltas = _rope_index(language, raw)
        language._position_ids, language._rope_deltas = None, rope_deltas
        return {"position_ids": position_ids, "rope_deltas": rope_deltas}

    def _processed(self, rendered: str, images: list[Image.Image]) -> dict[str, Any]:
        try:
            raw: dict[str, Any] = prepare_inputs(
                self._processor,
                images=images or None,
                prompts=rendered,
                image_token_index=getattr(self._model.config, "image_token_index", None),
                add_special_tokens=self._add_special_tokens,
            )
        except ValueError as error:  # as which mlx-vlm reports whatever a processor raises
            raise SequenceError("worker_error", f"the model's processor refuses this prompt: {error}") from None
        return raw

    def _image(self, picture: Picture) -> Image.Image:
        # Zero copy: PIL reads from the arena, where the picture stays until the row's Finished, Failed or Removed.
        size_bytes = picture.width * picture.height * 3
        pixels = np.frombuffer(self._arena, dtype=np.uint8, count=size_bytes, offset=picture.offset)
        return Image.frombuffer("RGB", (picture.width, picture.height), pixels, "raw", "RGB", 0, 1)

    def _check_sizes(self, pictures: Sequence[Picture], grids: mx.array | None) -> None:
        """Fail when the processor resized a picture: the daemon sized it for this model, and a copy would differ."""
        if grids is None or self._spec.factor == 1:
            return
        patch = self._spec.factor // int(self._processor.image_processor.merge_size)
        for picture, (_, rows, columns) in zip(pictures, np.array(grids), strict=True):
            if (columns * patch, rows * patch) != (picture.width, picture.height):
                raise SequenceError(
                    "worker_error",
                    f"a picture of {picture.width}x{picture.height} reached the model, which takes multiples of "
                    f"{self._spec.factor} within {self._spec.min_pixels} to {self._spec.max_pixels} pixels",
                )


def _rope_index(language: Any, raw: dict[str, Any]) -> tuple[mx.array, mx.array]:
    """Return positions and their distance from the length as the language model itself computes them.

    A prompt without pictures has them one after the other, where the model does not say it in its own way: falcon_ocr's
    method wants more than there is.
    """
    token_ids = raw["input_ids"]
    grids = {name: raw[name] for name in ("image_grid_thw", "video_grid_thw") if raw.get(name) is not None}
    if not grids and "image_grid_thw" not in inspect.signature(language.get_rope_index).parameters:
        return mx.arange(token_ids.shape[1], dtype=mx.int32)[None], mx.zeros((1, 1), dtype=mx.int32)
    position_ids, rope_deltas = language.get_rope_index(token_ids, **grids)
    return position_ids, rope_deltas
