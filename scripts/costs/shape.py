"""What a model's arithmetic amounts to, by its configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Dimensions of a Qwen3-VL.

    Attributes:
        hidden, inter, layers, heads, kv_heads, head_dim, vocab: of the language model.
        vision_hidden, vision_inter, vision_layers: of the vision tower.
        merge: patches of an image token.
    """

    hidden: int
    inter: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    vision_hidden: int
    vision_inter: int
    vision_layers: int
    merge: int = 4

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read ``config.json`` of a checkpoint."""
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        text, vision = config["text_config"], config["vision_config"]
        return cls(
            hidden=text["hidden_size"],
            inter=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            vocab=text["vocab_size"],
            vision_hidden=vision["hidden_size"],
            vision_inter=vision["intermediate_size"],
            vision_layers=vision["depth"],
            merge=vision["spatial_merge_size"] ** 2,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer of the language model."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inter

    @property
    def text_weights(self) -> int:
        """Weights that every token passes: the layers and the head."""
        return self.layers * self.layer_weights + self.head_weights

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocab

    @property
    def vision_weights(self) -> int:
        """Weights that every patch passes."""
        return self.vision_layers * (4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_inter)

    @property
    def weights(self) -> int:
        """All weights, roughly: embeddings are the head's."""
        return self.text_weights + self.vision_weights

    @property
    def side(self) -> float:
        """The side of a square matrix with as many weights as one of a layer's has on average (there are seven)."""
        return math.sqrt(self.layer_weights / 7)

    @property
    def vision_side(self) -> float:
        """The same of the vision tower, whose layers have six."""
        return math.sqrt((4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_inter) / 6)

    def prefill_flop(self, tokens: float, context: float) -> float:
        """Return the operations of prefilling `tokens` behind `context` others; the head sees only the last one."""
        products = 2 * self.layers * self.layer_weights * tokens + 2 * self.head_weights
        return products + 4 * self.layers * self.heads * self.head_dim * tokens * (context + tokens / 2)

    def decode_flop(self, rows: float, context: float) -> float:
        """Return the operations of one decode step of `rows` rows, each `context` tokens long."""
        return rows * (2 * self.text_weights + 4 * self.layers * self.heads * self.head_dim * context)

    def exponentials(self, tokens: float, context: float) -> float:
        """Return the exponentials that `tokens` cost with `context` before them: gates of the layers, and attention."""
        return tokens * self.layers * (self.inter + self.heads * context)

    def vision_flop(self, image_tokens: float) -> float:
        """Return the operations of the vision tower for a picture of `image_tokens`."""
        patches = image_tokens * self.merge
        return 2 * self.vision_weights * patches + 4 * self.vision_layers * self.vision_hidden * patches**2
