"""From the parts of a user turn to token ids and embeddings, through the model's own template and processor."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import mlx.core as mx
import numpy as np
from mlx_vlm.utils import prepare_inputs, should_add_special_tokens
from PIL import Image

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.checkpoint import Checkpoint
from vlmd_bridge.workers.messages import Picture, Start, Text, Turn

# A word joiner: without width, and no break. One inside `<|im_end|>` makes it plain text for every tokenizer and for
# processors that look for their placeholder in the rendered string.
_JOINER = "\u2060"

# Qwen adds ``<tool_call>`` and ``<think>`` without the flag that says "special".
_CONTROL_LIKE = re.compile(r"<\||</?(tool|think)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A prompt's token ids and the language model's keyword arguments."""

    token_ids: list[int]
    inputs: dict[str, Any]


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
        self._control = control_token_pattern(checkpoint.processor, checkpoint.tokenizer)

    def render(self, start: Start) -> str:
        """Return the prompt as text: one user turn with its parts in order, ready for the answer.

        Raises:
            SequenceError: the template refuses it; some know no system turn.
        """
        turns = [*start.history, Turn(role="user", parts=start.parts)]
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        # A record is no place for thoughts; templates that do not know the variable ignore it.
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        templated = self._processor if getattr(self._processor, "chat_template", None) else self._tokenizer
        try:
            return str(templated.apply_chat_template(messages, **options))
        except jinja2.TemplateError as error:
            raise SequenceError("worker_error", f"the model's chat template refuses this prompt: {error}") from None

    def embed(self, start: Start) -> Embedded:
        """Tokenize, preprocess the pictures and run the vision tower.

        Raises:
            SequenceError: the prompt leaves no room for an answer in the context, or a picture is not of a size that
                the model takes.
        """
        pictures = [part for part in start.parts if isinstance(part, Picture)]
        prompt = self.render(start)
        try:
            raw = prepare_inputs(
                self._processor,
                images=[self._image(picture) for picture in pictures] or None,
                prompts=prompt,
                image_token_index=getattr(self._model.config, "image_token_index", None),
                add_special_tokens=self._add_special_tokens,
            )
        except ValueError as error:  # as which mlx-vlm reports whatever a processor raises
            raise SequenceError("worker_error", f"the model's processor refuses this prompt: {error}") from None
        token_ids = raw["input_ids"].squeeze(0).tolist()
        if len(token_ids) >= self._context_tokens:
            raise SequenceError(
                "context_length_exceeded",
                f"the prompt has {len(token_ids)} tokens; the model's context holds {self._context_tokens}, "
                "the answer included: send fewer or smaller pictures, or less text",
            )
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
        return Embedded(token_ids=token_ids, inputs=inputs)

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        if turn.role != "user":
            return "".join(self._plain(part.text) for part in turn.parts if isinstance(part, Text))
        return [
            {"type": "text", "text": self._plain(part.text)} if isinstance(part, Text) else {"type": "image"}
            for part in turn.parts
        ]

    def _plain(self, text: str) -> str:
        """Return `text` with a joiner inside every control token, so that none acts as one."""
        return self._control.sub(lambda match: match[0][0] + _JOINER + match[0][1:], text)

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


def control_token_pattern(processor: Any, tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the strings that a template or processor gives a meaning.

    These are the tokenizer's special tokens, added tokens that its chat template writes (``<think>``) or that look
    like control tokens, and the placeholders the processor replaces. Other added tokens, such as Gemma's runs of line
    feeds, are ordinary text.
    """
    template = str(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or "")
    strings: set[object] = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or _CONTROL_LIKE.match(token.content) or ("<" in token.content and token.content in template):
            strings.add(token.content)
    for owner in (processor, tokenizer):
        for name in ("image_token", "video_token", "audio_token", "boi_token", "eoi_token"):
            strings.add(getattr(owner, name, None))
    strings.add("<image>")  # split upon by mlx-vlm for processors of its own
    found = sorted((s for s in strings if isinstance(s, str) and len(s) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)))
