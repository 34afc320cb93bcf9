"""Folders of the user's own: configuration, log and result store."""

from __future__ import annotations

import os
from pathlib import Path

_APP = "vlmd"


def config_file() -> Path:
    """Return the path of the configuration file: `VLMD_CONFIG`, else the place the platform has for it."""
    if chosen := os.environ.get("VLMD_CONFIG"):
        return Path(chosen).expanduser().absolute()
    # Imported here: a daemon that is told its log file needs it for nothing else.
    from platformdirs import user_config_path

    return user_config_path(_APP, appauthor=False) / "config.toml"


def store_file() -> Path:
    """Return the path of the result store: one for all daemons of a user."""
    from platformdirs import user_cache_path

    return user_cache_path(_APP, appauthor=False) / "results.db"


def log_file() -> Path:
    """Return the log file's path: one for all daemons of a user, whose lines carry the pid."""
    from platformdirs import user_log_path

    return user_log_path(_APP, appauthor=False) / "vlmd.log"
