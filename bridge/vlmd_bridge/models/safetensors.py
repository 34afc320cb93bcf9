"""Headers of safetensors files: what tensors there are and whether the file holds them, without reading any."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vlmd_bridge.models.errors import ModelError

# The format's own bound: https://github.com/huggingface/safetensors#format
_MAX_HEADER_BYTES = 100_000_000
_LFS_POINTER = b"version https://git-lfs"


class _Tensor(msgspec.Struct):
    dtype: str
    data_offsets: tuple[int, int]


@dataclass(slots=True)
class Weights:
    """The tensors of one or more files."""

    total_bytes: int = 0
    bytes_by_dtype: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)


def add_header(path: Path, weights: Weights) -> None:
    """Add the tensors that the header of `path` lists.

    Raises:
        ModelError: the file is shorter than its header says, or no safetensors file.
    """
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        head = file.read(8)
        if (head + file.read(len(_LFS_POINTER) - 8)).startswith(_LFS_POINTER):
            raise ModelError(
                "model_incomplete", f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
            )
        header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if len(head) < 8 or 8 + header_bytes > size_bytes:
            if header_bytes > _MAX_HEADER_BYTES:
                raise ModelError("model_invalid", f"{path} is not a safetensors file")
            raise _truncated(path, size_bytes, 8 + header_bytes)
        file.seek(8)
        raw = file.read(header_bytes)
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        tensors = {
            name: msgspec.json.decode(entry, type=_Tensor) for name, entry in entries.items() if name != "__metadata__"
        }
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError("model_invalid", f"{path} is not a safetensors file: its header: {error}") from None
    end_bytes = 8 + header_bytes + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end_bytes > size_bytes:
        raise _truncated(path, size_bytes, end_bytes)
    for name, tensor in tensors.items():
        tensor_bytes = tensor.data_offsets[1] - tensor.data_offsets[0]
        weights.total_bytes += tensor_bytes
        weights.bytes_by_dtype[tensor.dtype] += tensor_bytes
        weights.names.add(name)


def _truncated(path: Path, size_bytes: int, expected_bytes: int) -> ModelError:
    return ModelError(
        "model_incomplete",
        f"{path} is cut off: it has {size_bytes} bytes of {expected_bytes}; fetch it again",
    )
