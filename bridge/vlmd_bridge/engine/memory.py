"""How much of the machine's memory the rows of a model may take, and what its prefixes may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import psutil

from vlmd_bridge.engine.platform import working_set_bytes
from vlmd_bridge.models.probe import kv_bytes_per_token
from vlmd_bridge.workers.messages import EngineInfo

# Of what is free when a model has been loaded. The rest is for the rows' prefill, pictures, and other programs.
_ROWS_SHARE = 0.5
_PREFIXES_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBudget:
    """Bytes for keys and values, and those of a token, 0 where the model's configuration does not say."""

    rows_bytes: int
    prefixes_bytes: int
    token_bytes: int

    @classmethod
    def of(cls, info: EngineInfo) -> MemoryBudget:
        """Return the budget of a model that has been loaded and has run."""
        free_bytes = _free_bytes(info.weight_bytes)
        return cls(
            rows_bytes=int(free_bytes * _ROWS_SHARE),
            prefixes_bytes=int(free_bytes * _PREFIXES_SHARE),
            token_bytes=_token_bytes(info),
        )


def _free_bytes(weight_bytes: int) -> int:
    # What other models and programs hold is not free; of a GPU's working set, only this model's weights are known.
    free_bytes = int(psutil.virtual_memory().available)
    limit_bytes = working_set_bytes(mx.device_info())
    return max(0, min(free_bytes, limit_bytes - weight_bytes)) if limit_bytes else free_bytes


def _token_bytes(info: EngineInfo) -> int:
    config = msgspec.json.decode((Path(info.path) / "config.json").read_bytes(), type=dict[str, Any])
    # On a CPU everything is computed in float32; see `fit_to_device`.
    wide = info.device == "cpu" or info.dtype == "float32"
    return kv_bytes_per_token(config, 4 if wide else 2)
