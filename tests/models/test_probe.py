"""The probe tells what a folder holds, or says what is wrong with it, where, and what to do; in milliseconds."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlmd_bridge.models.architectures import knows_architecture
from vlmd_bridge.models.errors import ModelError
from vlmd_bridge.models.names import hub_cache, resolve_model
from vlmd_bridge.models.probe import probe_model

VISION_CONFIG: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": {
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
    },
    "vision_config": {"depth": 2},
}


def write_weights(path: Path, tensors: dict[str, tuple[str, int]], *, cut_bytes: int = 0) -> None:
    """Write a safetensors file of zeros: `tensors` maps names to (dtype, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    data = struct.pack("<Q", len(raw)) + raw + bytes(offset)
    path.write_bytes(data[: len(data) - cut_bytes])


def make_model(folder: Path, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(VISION_CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(
        folder / "model.safetensors",
        {"language_model.model.embed_tokens.weight": ("BF16", 600), "vision_tower.blocks.0.weight": ("F32", 400)},
    )
    return folder


def code_of(path: Path) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        probe_model(path)
    return caught.value.code, str(caught.value)


def test_a_vision_model(tmp_path: Path) -> None:
    probed = probe_model(make_model(tmp_path / "m"))
    assert (probed.kind, probed.model_type, probed.dtype, probed.quantization) == (
        "vision",
        "qwen3_vl",
        "bfloat16",
        None,
    )
    assert (probed.weight_bytes, probed.context_tokens) == (1000, 4096)
    assert probed.kv_bytes_per_token == 2 * 4 * 2 * 32 * 2


def test_a_text_model(tmp_path: Path) -> None:
    config = {**VISION_CONFIG["text_config"], "model_type": "qwen3", "quantization": {"bits": 4, "group_size": 64}}
    probed = probe_model(make_model(tmp_path / "m", config))
    assert (probed.kind, probed.quantization) == ("text", "4-bit")


def test_vision_configured_but_left_out_of_the_weights(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", {**VISION_CONFIG, "model_type": "qwen3"})
    write_weights(folder / "model.safetensors", {"model.embed_tokens.weight": ("F16", 8)})
    assert probe_model(folder).kind == "text"


def test_linear_attention_layers_have_no_growing_cache(tmp_path: Path) -> None:
    text = {**VISION_CONFIG["text_config"], "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    probed = probe_model(make_model(tmp_path / "m", {**VISION_CONFIG, "text_config": text}))
    assert probed.kv_bytes_per_token == 2 * 1 * 2 * 32 * 2


def test_not_a_model(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none")[0] == "model_not_found"
    (tmp_path / "file").write_text("")
    assert code_of(tmp_path / "file")[0] == "model_not_found"
    assert code_of(tmp_path)[0] == "model_invalid"


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": 3}', "{}", "\xff"])
def test_bad_config(tmp_path: Path, config: str) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "config.json").write_bytes(config.encode("latin-1"))
    code, message = code_of(folder)
    assert code == "model_invalid"
    assert "config.json" in message


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {f"t{i}": f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)}})
    )
    (folder / "model.safetensors").rename(folder / "model-00001-of-00005.safetensors")
    code, message = code_of(folder)
    assert code == "model_incomplete"
    assert "4 of 5" in message and "model-00002-of-00005" in message


def test_no_weights_and_no_tokenizer(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in code_of(folder)[1]
    (folder / "model.safetensors").unlink()
    assert code_of(folder)[0] == "model_incomplete"


def test_cut_off_weights(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    for cut_bytes in (1, 999, 1000 + 50):
        write_weights(folder / "model.safetensors", {"vision_tower.w": ("F32", 1000)}, cut_bytes=cut_bytes)
        code, message = code_of(folder)
        assert code == "model_incomplete" and "cut off" in message
    (folder / "model.safetensors").write_bytes(b"")
    assert code_of(folder)[0] == "model_incomplete"


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert code_of(folder)[0] == "model_invalid"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nope")
    assert code_of(folder)[0] == "model_invalid"
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    code, message = code_of(folder)
    assert code == "model_incomplete" and "git lfs pull" in message


def test_shards_outside_the_folder(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": "../other.safetensors"}}))
    assert code_of(folder)[0] == "model_invalid"


@pytest.mark.parametrize("name", ["modeling_x.py", "config.json", "tokenizer_config.json"])
def test_code_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "m")
    if name.endswith(".py"):
        (folder / name).write_text("import os")
    else:
        (folder / name).write_text(json.dumps({**VISION_CONFIG, "auto_map": {"AutoModel": "x.Y"}}))
    code, message = code_of(folder)
    assert code == "model_needs_code" and name in message


def test_model_file_is_code_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", {**VISION_CONFIG, "model_file": "elsewhere.bin"})
    assert code_of(folder)[0] == "model_needs_code"


@pytest.mark.parametrize("model_type", ["brand_new_vl", "../../etc/passwd", ""])
def test_unknown_architecture(tmp_path: Path, model_type: str) -> None:
    code, message = code_of(make_model(tmp_path / "m", {**VISION_CONFIG, "model_type": model_type}))
    assert code == "model_unsupported" and "mlx_vlm" in message


def test_architectures_with_another_module_name() -> None:
    assert knows_architecture("mlx_vlm", "cohere2_vision")  # remapped to aya_vision
    assert knows_architecture("mlx_vlm", "qwen3_vl")
    assert knows_architecture("mlx_lm", "qwen3")
    assert not knows_architecture("no_such_package", "qwen3")


def test_cheap_and_without_the_model_stack(tmp_path: Path) -> None:
    """The daemon probes between two messages; an import of transformers would cost seconds and 200 MB."""
    folder = make_model(tmp_path / "m")
    probe_model(folder)
    times_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        probe_model(folder)
        times_s.append(time.perf_counter() - began_s)
    print(f"probe: {min(times_s) * 1000:.2f} ms")
    assert min(times_s) < 0.02
    script = (
        "import sys; from pathlib import Path; from vlmd_bridge.models.names import resolve_model; "
        "resolve_model(sys.argv[1]); "
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx','mlx_vlm','mlx_lm','numpy','transformers','PIL')])"
    )
    output = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_resolve_folder_and_fake(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    resolved = resolve_model(str(folder), {})
    assert (resolved.name, resolved.path, resolved.backend) == (str(folder), str(folder), "vision")
    assert resolve_model("fake", {}).backend == "fake"
    assert resolve_model("fake:tokens=4,width=2", {}).path == "tokens=4,width=2"


def test_names_of_nothing() -> None:
    for name in ("no-such-folder", "a/b/c", "../x/..", "/no/such/folder", "org/..", "a/b@", "a/b@../c"):
        with pytest.raises(ModelError) as caught:
            resolve_model(name, {"HF_HUB_CACHE": "/nonexistent"})
        assert caught.value.code == "model_not_found", name


def test_place_of_the_hub_cache() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/c"}) == Path("/c")
    assert hub_cache({"HF_HOME": "/h"}) == Path("/h/hub")
    assert hub_cache({"HOME": "/u"}) == Path("/u/.cache/huggingface/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/x", "HOME": "/u"}) == Path("/x/huggingface/hub")
