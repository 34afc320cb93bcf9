"""From turns to token ids and embeddings, through a vision model's own template and processor."""

from __future__ import annotations

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
from vlmd_bridge.engine.template import ChatTemplate, check_context, pictures_of
from vlmd_bridge.workers.messages import Count, Picture, Start


class PromptBuilder:
    """Builds prompts for one loaded model. Its pictures lie in `arena`."""

    def __init__(self, checkpoint: Checkpoint, arena: mmap.mmap) -> None:
        self._model = checkpoint.model
        self._processor = checkpoint.processor
        self._tokenizer = checkpoint.tokenizer
        self._spec = checkpoint.image_spec
        self._context_tokens = checkpoint.context_tokens
        self._arena = arena
        self._add_special_tokens = should_add_special_tokens(checkpoint.model_type, checkpoint.processor)
        self.template = ChatTemplate(checkpoint.processor, checkpoint.tokenizer, sees=True)

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
        raw = self._processed(rendered, [self._image(picture) for picture in pictures])
        token_ids = raw["input_ids"].squeeze(0).tolist()
        check_context(len(token_ids), self._context_tokens)
        self._check_sizes(pictures, raw.get("image_grid_thw"))
        data = {k: v for k, v in raw.items() if k not in ("input_ids", "pixel_values", "attention_mask")}
        features = self._model.get_input_embeddings(
            raw["input_ids"], raw.get("pixel_values"), mask=raw.get("attention_mask"), **data
        )
        inputs = {**data, **{k: v for k, v in features.to_dict().items() if v is not None}}
        # The model keeps these of the prompt it embedded last: a row must bring its own.
        if hasattr(self._model.language_model, "_rope_deltas"):
            length = len(token_ids)
            inputs.setdefault("rope_deltas", mx.zeros((1, 1), dtype=mx.int32))
            inputs.setdefault("position_ids", mx.arange(length, dtype=mx.int32)[None])
        return Tokenized(token_ids=token_ids, inputs=inputs, opens_thinking=self.template.opens_thinking(rendered))

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
