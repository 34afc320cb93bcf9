"""Says what a model folder holds and whether it can be loaded, from JSON and safetensors headers alone.

Runs in the daemon: nothing of the model stack is imported and no weights are read, so it takes milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from vlmd_bridge.models.architectures import is_installed, knows_architecture
from vlmd_bridge.models.errors import ModelError
from vlmd_bridge.models.safetensors import Weights, add_header

Kind: TypeAlias = Literal["vision", "text"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_VISION_TENSOR = re.compile(r"vision_tower|visual\.|vision_model|vision_encoder|multi_modal_projector|mm_projector")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "*.tiktoken")
_JSON_WITH_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedModel:
    """What a folder holds.

    `dtype` is that of most weight bytes that are not packed; `quantization` is for example ``4-bit``. A context of 0
    tokens means that the folder does not say. `kv_bytes_per_token` counts layers whose cache grows, at 2 bytes an
    element (4 for float32 checkpoints).
    """

    path: Path
    kind: Kind
    model_type: str
    dtype: str
    quantization: str | None
    weight_bytes: int
    context_tokens: int
    kv_bytes_per_token: int


def probe_model(path: Path) -> ProbedModel:
    """Probe the folder at `path`.

    Raises:
        ModelError: it is missing, broken, incomplete, of an unknown architecture, or brings code to execute.
    """
    if not path.is_dir():
        there = "is not a folder" if path.exists() else "does not exist"
        raise ModelError("model_not_found", f"{path} {there}: a model is a folder with config.json and *.safetensors")
    config = _read_json(path / "config.json")
    _refuse_code(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("model_invalid", f"{path / 'config.json'} names no model_type")
    weights = _weights(path)
    if not any(any(path.glob(name)) for name in _TOKENIZER_FILES):
        raise ModelError("model_incomplete", f"{path} has no tokenizer (tokenizer.json): fetch the whole repository")
    kind: Kind = "vision" if _sees(config, weights) else "text"
    _check_architecture(path, kind, model_type)
    text = _text_config(config)
    dtype = _dtype(weights)
    return ProbedModel(
        path=path,
        kind=kind,
        model_type=model_type,
        dtype=dtype,
        quantization=_quantization(config, text),
        weight_bytes=weights.total_bytes,
        context_tokens=_first_int(text, "max_position_embeddings", "max_sequence_length", "seq_length"),
        kv_bytes_per_token=kv_bytes_per_token(config, 4 if dtype == "float32" else 2),
    )


def kv_bytes_per_token(config: Mapping[str, Any], element_bytes: int) -> int:
    """Return the bytes by which the caches of a model grow with a token, 0 where `config` does not say."""
    text = _text_config(config)
    layers = _first_int(text, "num_hidden_layers")
    heads = _first_int(text, "num_attention_heads")
    head_dim = _first_int(text, "head_dim") or _first_int(text, "hidden_size") // max(1, heads)
    layer_types = text.get("layer_types")
    interval = _first_int(text, "full_attention_interval")
    if isinstance(layer_types, list):
        layers = layer_types.count("full_attention")
    elif interval:
        layers //= interval  # the others are linear attention, with a state of fixed size
    return 2 * layers * (_first_int(text, "num_key_value_heads") or heads) * head_dim * element_bytes


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError("model_invalid", f"{path.parent} has no {path.name}: it is not a model folder")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError("model_invalid", f"{path} is not what it should be: {error}") from None


def _refuse_code(path: Path) -> None:
    """Raise when loading could run code out of the folder: a model is data, wherever it came from."""
    for script in sorted(path.glob("*.py")):
        raise ModelError(
            "model_needs_code",
            f"{script} is code, and vlmd runs none from a model folder: use a conversion without it "
            "(mlx-community has most), or remove the file if the model does not need it",
        )
    for name in _JSON_WITH_CODE:
        if (path / name).is_file():
            keys = {"auto_map", "model_file"} & _read_json(path / name).keys()
            if keys:
                raise ModelError(
                    "model_needs_code",
                    f"{path / name} has {' and '.join(sorted(keys))}, which names code to run, and vlmd runs none: "
                    "use a conversion without it, or remove the entry if the model does not need it",
                )


def _weights(path: Path) -> Weights:
    files = _shards(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(
            "model_incomplete", f"{path} lacks {len(missing)} of {len(files)} weight files ({shown}): fetch it again"
        )
    weights = Weights()
    for file in files:
        add_header(file, weights)
    return weights


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError("model_invalid", f"{index} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise ModelError("model_invalid", f"{index} names files outside its folder")
        return [path / name for name in names]
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name != "consolidated.safetensors"]
    if not files:
        raise ModelError(
            "model_incomplete",
            f"{path} has no *.safetensors: fetch the weights, or a conversion if there are only other formats",
        )
    return files


def _sees(config: Mapping[str, Any], weights: Weights) -> bool:
    """A vision model has a vision part configured, and weights for it: some conversions leave them out."""
    return bool(config.get("vision_config")) and any(map(_VISION_TENSOR.search, weights.names))


def _check_architecture(path: Path, kind: Kind, model_type: str) -> None:
    package = "mlx_vlm" if kind == "vision" else "mlx_lm"
    # Without the package here the model may run in an interpreter of its own, which will tell.
    if is_installed(package) and not knows_architecture(package, model_type):
        raise ModelError(
            "model_unsupported",
            f"{path} is a {kind} model of type {model_type!r}, which the installed {package} does not know: "
            "use a model of another type, or a version of vlmd with a newer one",
        )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("text_config", "llm_config", "language_config"):
        part = config.get(name)
        if isinstance(part, dict):
            return part
    return config


def _dtype(weights: Weights) -> str:
    floats = {name: weights.bytes_by_dtype[raw] for raw, name in _DTYPES.items() if weights.bytes_by_dtype[raw]}
    return max(floats, key=lambda name: floats[name]) if floats else "unknown"


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    found = config.get("quantization") or config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("bits"), int):
        return f"{found['bits']}-bit"
    return str(found.get("quant_method") or "unknown")


def _first_int(config: Mapping[str, Any], *names: str) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)
