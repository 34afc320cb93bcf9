"""The checkpoint's files: tokenizer, chat template, configuration, weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_training.pool import SEEN_HEIGHT, SEEN_WIDTH
from demo_training.prompts import CHAT, QUESTIONS, some_timestamp
from vlmd_bridge.demo import iter_recording
from vlmd_bridge.record import SINGLE_INSTRUCTIONS, format_record, interleaved_instructions, single_label

# Qwen's own, in Qwen's order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen's word splitting: every digit is a token of its own, so that no number is new to the model.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_VOCABULARY_LIMIT = 1024
_TEXT_WIDTH = 192
_CORPUS_FRAMES = 600


def train_tokenizer(seed: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of what the model reads and writes; any other text falls to bytes."""
    rng = random.Random(seed)
    corpus = [SINGLE_INSTRUCTIONS, *(interleaved_instructions(n) for n in range(1, 9))] * 4
    for frame in iter_recording(seed, _CORPUS_FRAMES, (64, 40)):
        corpus += [format_record(frame.record), *frame.answers.values(), single_label(some_timestamp(rng))]
    corpus += [text for texts in QUESTIONS.values() for text in texts]
    for answer, texts in CHAT.items():
        corpus += [answer, answer, *texts]
    corpus += ["system", "user", "assistant", "You are a helpful assistant. Describe this image in detail."] * 3
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_LIMIT,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `config.json`: a Qwen3-VL of 3.3 million parameters with deepstack."""
    special = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    # No padding: every id the model can emit decodes.
    vocabulary = tokenizer.get_vocab_size()
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": special["<|image_pad|>"],
        "video_token_id": special["<|video_pad|>"],
        "vision_start_token_id": special["<|vision_start|>"],
        "vision_end_token_id": special["<|vision_end|>"],
        "vision_token_id": special["<|vision_pad|>"],
        "eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]],
        "pad_token_id": special["<|endoftext|>"],
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "num_hidden_layers": 4,
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 480,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-6,
            "vocab_size": vocabulary,
            "rope_theta": 100000.0,
            "max_position_embeddings": 8192,
            "rope_scaling": {
                "type": "default",
                "rope_type": "default",
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
            },
            "tie_word_embeddings": True,
            "attention_bias": False,
            "hidden_act": "silu",
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "out_hidden_size": _TEXT_WIDTH,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
    }


def write_static_files(folder: Path, tokenizer: Tokenizer) -> None:
    """Write everything of the checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(tokenizer)
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": config["eos_token_id"]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "model_max_length": 8192,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": 32 * 32,
            "max_pixels": SEEN_WIDTH * SEEN_HEIGHT,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def new_model(folder: Path) -> Any:
    """Return a model of the configuration in `folder`, its weights still random."""
    # Imported late: transformers takes seconds.
    from mlx_vlm.models import qwen3_vl

    model = qwen3_vl.Model(qwen3_vl.ModelConfig.from_dict(json.loads((folder / "config.json").read_text())))
    mx.eval(model.parameters())
    return model


def write_weights(folder: Path, model: Any, metadata: dict[str, str]) -> None:
    """Write the weights as float32 and replace what was there in one step."""
    partial = folder / "partial.safetensors"
    mx.save_safetensors(str(partial), dict(tree_flatten(model.parameters())), metadata={"format": "mlx", **metadata})
    partial.replace(folder / "model.safetensors")
