"""Settings and where each comes from: built-in default < TOML file < environment < flag."""

from __future__ import annotations

from vlmd_bridge.config.layers import Config, Setting, load
from vlmd_bridge.config.settings import ConfigError, Settings

__all__ = ["Config", "ConfigError", "Setting", "Settings", "load"]
