"""Random checkpoints of any size, with the demonstration's tokenizer: speed does not depend on what weights say."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from vlmd_bridge.demo import MODEL_PATH

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_TILE_PIXELS = 32 * 32  # of an image token


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model to build. `image_tokens` is what a 1280x800 picture may have at most."""

    name: str
    hidden: int
    inter: int
    layers: int
    head_dim: int = 32
    vision_hidden: int = 128
    vision_inter: int = 256
    vision_layers: int = 3
    image_tokens: int = 40


def build(size: Size, folder: Path) -> Path:
    """Write the checkpoint into `folder`, unless it is there, and return it."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copy(MODEL_PATH / name, folder / name)
    config = json.loads((MODEL_PATH / "config.json").read_text())
    heads = size.hidden // size.head_dim
    kv_heads = next(count for count in range(max(1, heads // 4), 0, -1) if heads % count == 0)
    half = size.head_dim // 2
    config["text_config"] |= {
        "hidden_size": size.hidden,
        "intermediate_size": size.inter,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size.head_dim,
    }
    # The parts of mrope_section add up to half a head.
    config["text_config"]["rope_scaling"]["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    config["vision_config"] |= {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_inter,
        "out_hidden_size": size.hidden,
        "deepstack_visual_indexes": [0, 1],
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((MODEL_PATH / "preprocessor_config.json").read_text())
    processor |= {"min_pixels": 4 * _TILE_PIXELS, "max_pixels": size.image_tokens * _TILE_PIXELS}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    _write_weights(config, folder)
    return folder


def _write_weights(config: dict[str, object], folder: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    arch = importlib.import_module("mlx_vlm.models.qwen3_vl")
    parsed = arch.ModelConfig.from_dict(copy.deepcopy(config))  # from_dict changes nested dicts
    for part, kind in (("text_config", arch.TextConfig), ("vision_config", arch.VisionConfig)):
        if isinstance(getattr(parsed, part), dict):
            setattr(parsed, part, kind.from_dict(getattr(parsed, part)))
    network = arch.Model(parsed)
    mx.random.seed(0)
    weights = {}
    for name, value in tree_flatten(network.parameters()):
        if name.endswith("weight") and value.ndim == 1:
            weights[name] = mx.ones(value.shape)
        elif value.ndim == 1:
            weights[name] = mx.zeros(value.shape)
        else:
            # Small enough that no activation overflows in a dozen layers.
            weights[name] = mx.random.normal(value.shape) * 0.05
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
