"""Configurations of tiny models whose positions stay with the language model: see `PromptBuilder._positions`."""

from __future__ import annotations

from typing import Any

# Published processors know their placeholder by another name; a tokenizer may name its own.
IMAGE_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}

# 4 to 64 image tokens of 32 by 32 pixels.
MIN_PIXELS = 32 * 32 * 4
MAX_PIXELS = 32 * 32 * 64

# What its processor reads in place of the others' fields.
PADDLE_PICTURES = {"temporal_patch_size": 1, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}

OTHER_TYPES = ("glm_ocr", "glm4v", "glm4v_moe", "paddleocr_vl")

_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "image_size": 112,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
_MOE = {
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "routed_scaling_factor": 1.0,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "use_qk_norm": False,
}


def other_config(model_type: str, text: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Return config.json of a tiny `model_type`; `text` and `common` are as for the other tiny models."""
    # The parts of mrope_section add up to half of what turns.
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000}
    config = {**common, "eos_token_id": text["eos_token_id"], "vocab_size": text["vocab_size"]}
    begin, end = common["vision_start_token_id"], common["vision_end_token_id"]
    text = {**text, "head_dim": 16, "model_type": f"{model_type}_text", "eos_token_id": [text["eos_token_id"]]}
    if model_type == "paddleocr_vl":  # text fields at the root
        vision = {**_VISION, "model_type": model_type, "num_hidden_layers": 2, "num_attention_heads": 2}
        # As many features as its tower gives, whatever is configured.
        text |= {"hidden_size": 1024, "use_bias": False, "rope_parameters": rope, "rope_scaling": rope}
        return {**text, **config, "vision_config": vision | {"num_channels": 3}}
    config["vision_config"] = {**_VISION, "model_type": f"{model_type}_vision"}
    if model_type == "glm_ocr":
        config |= {"image_start_token_id": begin, "image_end_token_id": end}
        # Its TextConfig takes no other fields than these.
        taken = {name: value for name, value in text.items() if name not in ("rope_theta", "bos_token_id")}
        config["text_config"] = {**taken, "rope_parameters": {**rope, "partial_rotary_factor": 1.0}}
        return config
    half = {**rope, "mrope_section": [1, 1, 2]}
    text |= {"partial_rotary_factor": 0.5, "rope_theta": 10_000, "rope_scaling": half, "rope_parameters": half}
    config["text_config"] = {**text, **(_MOE if model_type == "glm4v_moe" else {})}
    return config | {"image_token_index": common["image_token_id"], "video_token_index": common["video_token_id"]}
