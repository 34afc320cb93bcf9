"""Tiny random checkpoints of several architectures: what a folder from a model hub holds, a few hundred kilobytes each.

Neither torch nor a network is needed: mlx-vlm's own module tree is instantiated, filled at random and saved.
"""

from __future__ import annotations

import copy
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny_other_models import (
    IMAGE_TOKENS,
    MAX_PIXELS,
    MIN_PIXELS,
    OTHER_TYPES,
    PADDLE_PICTURES,
    other_config,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added to real Qwen tokenizers without the `special` flag, but control tokens all the same.
PLAIN_ADDED_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for c in message.content %}"
    "{%- if c.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in c %}{{- c.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)

# The split of Qwen2's tokenizer.json: byte-level BPE.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A few merges, so that byte pair encoding is not trivial.
_MERGED_WORDS = ("the", "cat", "dog", "text", "image", "frame", "description", "activity", "apps", "topics")

_HIDDEN = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyModel:
    """What to build. `seed` decides the weights."""

    name: str
    model_type: str
    bits: int = 0
    dtype: str = "float32"
    context: int = 262144
    seed: int = 0


TINY_VISION_MODELS = (
    TinyModel(name="qwen3_vl", model_type="qwen3_vl"),
    TinyModel(name="qwen3_vl_4bit", model_type="qwen3_vl", bits=4, dtype="bfloat16"),
    TinyModel(name="qwen3_5", model_type="qwen3_5"),
    TinyModel(name="qwen2_5_vl", model_type="qwen2_5_vl"),
)
# Decoded by mlx-vlm's BatchGenerator, and compared with mlx-vlm alone.
TINY_OTHER_MODELS = tuple(TinyModel(name=model_type, model_type=model_type) for model_type in OTHER_TYPES)


def build_tiny_model(model: TinyModel, folder: Path) -> Path:
    """Write `model` into `folder` (made when missing) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, vocab_size = _write_tokenizer(folder, IMAGE_TOKENS if model.model_type in OTHER_TYPES else {})
    config = _config(model, ids, vocab_size)
    _write_weights(model, config, folder)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            # As published: a caller that does not pass a temperature gets this one.
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
        },
    )
    patch_size = config["vision_config"]["patch_size"]
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen2_5_VLProcessor" if model.model_type == "qwen2_5_vl" else "Qwen3VLProcessor",
            "patch_size": patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            **(PADDLE_PICTURES if model.model_type == "paddleocr_vl" else {}),
        },
    )
    return folder


def _write_tokenizer(folder: Path, named_tokens: dict[str, str]) -> tuple[dict[str, int], int]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _MERGED_WORDS:
        merged = word[0]
        for char in word[1:]:
            if (merged, char) not in merges:
                merges.append((merged, char))
            merged += char
            vocab.setdefault(merged, len(vocab))
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) or 0 for token in SPECIAL_TOKENS + PLAIN_ADDED_TOKENS}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {
                str(i): {
                    "content": token,
                    "special": token in SPECIAL_TOKENS,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                }
                for token, i in ids.items()
            },
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 262144,
            "chat_template": _CHAT_TEMPLATE,
            **named_tokens,
        },
    )
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    return ids, tokenizer.get_vocab_size()


def _config(model: TinyModel, ids: dict[str, int], vocab_size: int) -> dict[str, Any]:
    text: dict[str, Any] = {
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocab_size,
        "rope_theta": 5_000_000,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "dtype": model.dtype,
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": ids["<|endoftext|>"],
    }
    # The parts of mrope_section add up to half a head.
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": _HIDDEN,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "num_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    }
    config: dict[str, Any] = {
        "model_type": model.model_type,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
        "dtype": model.dtype,
    }
    if model.model_type == "qwen3_vl":
        config["architectures"] = ["Qwen3VLForConditionalGeneration"]
        config["text_config"] = {**text, "model_type": "qwen3_vl_text", "rope_scaling": rope}
        config["vision_config"] = {**vision, "model_type": "qwen3_vl", "deepstack_visual_indexes": [0]}
    elif model.model_type == "qwen3_5":  # linear attention in three of four layers
        config["architectures"] = ["Qwen3_5ForConditionalGeneration"]
        config["eos_token_id"] = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        config["text_config"] = {
            **text,
            "model_type": "qwen3_5_text",
            "num_hidden_layers": 4,
            "full_attention_interval": 4,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
            },
        }
        config["vision_config"] = {**vision, "model_type": "qwen3_5"}
    elif model.model_type == "qwen2_5_vl":  # text fields at the root, windowed vision tower
        config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
        config |= text
        config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
        config["vision_config"] = {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": _HIDDEN,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }
    elif model.model_type in OTHER_TYPES:
        config = other_config(model.model_type, text, config)
    else:
        raise ValueError(f"no tiny model of type {model.model_type}")
    return config


def _write_weights(model: TinyModel, config: dict[str, Any], folder: Path) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    arch = importlib.import_module(f"mlx_vlm.models.{model.model_type}")
    parsed = arch.ModelConfig.from_dict(copy.deepcopy(config))  # from_dict changes nested dicts
    for part, kind in (("text_config", arch.TextConfig), ("vision_config", arch.VisionConfig)):
        if isinstance(getattr(parsed, part), dict):
            setattr(parsed, part, kind.from_dict(getattr(parsed, part)))
    network = arch.Model(parsed)
    mx.random.seed(model.seed)
    weights = []
    for name, value in tree_flatten(network.parameters()):
        if "norm" in name and name.endswith("weight") and value.ndim == 1:
            array = mx.ones(value.shape)
        elif name.endswith("bias"):
            array = mx.zeros(value.shape)
        else:
            array = mx.random.normal(value.shape) * (0.5 if "embed_tokens" in name else 0.15)
        weights.append((name, array.astype(getattr(mx, model.dtype))))
    network.load_weights(weights)
    if model.bits:
        nn.quantize(network.language_model, group_size=32, bits=model.bits)
        config["quantization"] = {"group_size": 32, "bits": model.bits, "mode": "affine"}
    arrays = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    _write_json(
        folder / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
            "weight_map": dict.fromkeys(arrays, "model.safetensors"),
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))
