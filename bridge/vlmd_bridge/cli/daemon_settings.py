"""From the configuration to what a daemon is told."""

from __future__ import annotations

import os
from pathlib import Path

from vlmd_bridge import faults, paths
from vlmd_bridge.config import Config, Settings
from vlmd_bridge.daemon.settings import DaemonSettings
from vlmd_bridge.engine import switches
from vlmd_bridge.store.bounds import DAY_S, Bounds
from vlmd_protocol.dialect import Dialect


def cache_file(chosen: Settings) -> Path:
    """Return the path of the result store."""
    return paths.store_file() if chosen.cache_file is None else Path(chosen.cache_file)


def cache_bounds(chosen: Settings) -> Bounds:
    """Return how much the result store keeps."""
    return Bounds(max_bytes=chosen.cache_max_bytes, max_age_s=chosen.cache_max_age_days * DAY_S)


def daemon_settings(found: Config, *, model: str, socket_path: Path) -> DaemonSettings:
    """Return the settings of a daemon that `found` configures."""
    chosen = found.settings
    return DaemonSettings(
        model=model,
        socket_path=socket_path,
        text_model=chosen.text_model,
        max_image_pixels=chosen.max_image_pixels,
        adr_dialect=Dialect(
            separate_done=True, batch_size=chosen.batch_size, max_tokens=chosen.max_tokens, mode=chosen.mode
        ),
        idle_timeout_s=chosen.idle_timeout_s or None,
        drain_timeout_s=chosen.drain_timeout_s,
        log_file=paths.log_file() if chosen.log_file is None else Path(chosen.log_file),
        verbose=chosen.verbose,
        batch_width=chosen.width,
        threads=chosen.threads,
        switched_off=switches.parse_names(chosen.engine_off),
        hang_timeout_s=chosen.hang_timeout_s,
        crash_window_s=chosen.crash_window_s,
        image_processes=chosen.image_processes,
        image_timeout_s=chosen.image_timeout_s,
        max_source_pixels=chosen.max_source_pixels,
        max_source_bytes=chosen.max_source_bytes,
        image_memory_bytes=chosen.image_memory_bytes,
        faults=os.environ.get(faults.VARIABLE, ""),
        cache=chosen.cache,
        store_path=cache_file(chosen),
        store_bounds=cache_bounds(chosen),
        fingerprint=found.fingerprint,
    )
