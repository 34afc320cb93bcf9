"""Tiny random text checkpoints: two tokenizers (byte-level, and sentencepiece-like with bytes to fall back on)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tests.support.tiny_models import TinyModel, _write_json, _write_tokenizer

TINY_TEXT_MODELS = (
    TinyModel(name="llama", model_type="llama", seed=3),
    TinyModel(name="qwen3", model_type="qwen3", seed=4),
    TinyModel(name="qwen3_4bit", model_type="qwen3", bits=4, dtype="bfloat16", seed=5),
)

# No system turn, as Gemma's and Mistral's: it raises.
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

_WORDS = ("the", "cat", "text", "image")


def build_tiny_text_model(model: TinyModel, folder: Path) -> Path:
    """Write `model` into `folder` (made when missing) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.model_type == "llama":
        eos, vocab_size = _write_sentencepiece_like(folder)
    else:
        ids, vocab_size = _write_tokenizer(folder, {})
        eos = ids["<|im_end|>"]
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if model.model_type == "llama" else "Qwen3ForCausalLM"],
        "model_type": model.model_type,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocab_size + 5,  # padded, as published
        "rope_theta": 1e6,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": True,
        "eos_token_id": eos,
        "torch_dtype": model.dtype,
    }
    _write_weights(model, config, folder)
    _write_json(folder / "config.json", config)
    return folder


def _write_sentencepiece_like(folder: Path) -> tuple[int, int]:
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for char in ["\u2581", *(chr(code) for code in range(0x21, 0x7F)), "é"]:
        vocab.setdefault(char, len(vocab))
    merges = []
    for word in _WORDS:
        merged = "\u2581"
        for char in word:
            if merged + char not in vocab:
                merges.append((merged, char))
            merged += char
            vocab.setdefault(merged, len(vocab))
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "chat_template": LLAMA_TEMPLATE,
        },
    )
    return 2, tokenizer.get_vocab_size()


def _write_weights(model: TinyModel, config: dict[str, Any], folder: Path) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    arch = importlib.import_module(f"mlx_lm.models.{model.model_type}")
    network = arch.Model(arch.ModelArgs.from_dict(config))
    mx.random.seed(model.seed)
    weights = [
        (
            name,
            (mx.ones(value.shape) if "norm" in name else mx.random.normal(value.shape) * 0.2).astype(
                getattr(mx, model.dtype)
            ),
        )
        for name, value in tree_flatten(network.parameters())
    ]
    network.load_weights(weights)
    if model.bits:
        nn.quantize(network, group_size=32, bits=model.bits)
        config["quantization"] = {"group_size": 32, "bits": model.bits, "mode": "affine"}
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), metadata={"format": "mlx"}
    )
