"""Lays the sources of settings over one another and keeps where each value came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from vlmd_bridge import paths
from vlmd_bridge.config.settings import ConfigError, Key, Settings, Value, keys
from vlmd_protocol.errors import shorten

# Settings that are paths: `~` is expanded, and a relative one in the file counts from the file's folder.
_PATHS: Final = frozenset({"socket", "log_file", "cache_file"})

# Settings that name a model.
_MODELS: Final = frozenset({"model", "text_model"})

# Models that are no folders, whatever folder there is.
_MODEL_NAMES: Final = frozenset({"demo", "fake"})

# What people write for a switch in an environment variable, besides the true, false, 1 and 0 that msgspec reads.
_SWITCHES: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}

# A configuration file is a few hundred bytes; more is some other file.
_MAX_FILE_BYTES: Final = 1024 * 1024

BUILT_IN: Final = "built-in"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A value and the place it came from, for people: ``built-in``, ``file …``, ``environment …``, ``flag …``."""

    value: Value
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The resolved configuration.

    Attributes:
        settings: every value, typed.
        origins: by name, each value with its origin.
        file: the configuration file's path, there or not.
        warnings: what was read and not used.
    """

    settings: Settings
    origins: Mapping[str, Setting]
    file: Path
    warnings: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Digest of the settings that change what a daemon answers."""
        relevant = {key.name: self.origins[key.name].value for key in keys() if key.answers}
        return hashlib.sha256(msgspec.json.encode(relevant, order="sorted")).hexdigest()[:16]


def load(
    flags: Mapping[str, Value] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Config:
    """Return the configuration of this machine, user and command.

    Args:
        flags: values given on the command line, by setting; None where a flag was not given.
        environ: the environment, `os.environ` unless given.
        file: the configuration file, `paths.config_file()` unless given.

    Raises:
        ConfigError: the file is no TOML, or a value has the wrong type or is out of bounds.
    """
    environ = os.environ if environ is None else environ
    chosen = bool(environ.get("VLMD_CONFIG")) or file is not None
    file = paths.config_file() if file is None else file
    warnings: list[str] = []
    in_file = _read_file(file, required=chosen, warnings=warnings)
    flags = flags or {}
    found: dict[str, Setting] = {}
    for key in keys():
        setting = Setting(value=key.default, origin=BUILT_IN)
        if key.name in in_file:
            setting = _setting(key, in_file[key.name], f"file {file}", base=file.parent)
        for variable in key.variables:
            # An empty variable is how a shell says "not set".
            if text := environ.get(variable):
                setting = _setting(key, _SWITCHES.get(text.lower(), text), f"environment {variable}", lax=True)
                break
        if (value := flags.get(key.name)) is not None:
            setting = _setting(key, value, f"flag --{key.name.removesuffix('_s').replace('_', '-')}")
        found[key.name] = setting
    settings = Settings(**{name: _as_any(setting.value) for name, setting in found.items()})
    return Config(settings=settings, origins=found, file=file, warnings=tuple(warnings))


def _as_any(value: Value) -> Any:
    """Each value was converted to its own setting's type; a mapping of them cannot say so."""
    return value


def _read_file(file: Path, *, required: bool, warnings: list[str]) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError(f"The configuration file {file} (VLMD_CONFIG) does not exist.") from None
        return {}
    except OSError as error:
        raise ConfigError(f"The configuration file {file} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"The configuration file {file} is over {_MAX_FILE_BYTES} bytes.")
    import tomllib  # only where there is a file: start-up of the daemon is counted in milliseconds

    try:
        values = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"The configuration file {file} is not TOML: {error}.") from None
    known = {key.name for key in keys()}
    warnings += [
        f"{file}: {shorten(name)!r} is no setting and was ignored; `vlmd config` lists them all"
        for name in values
        if name not in known
    ]
    return values


def _setting(key: Key, raw: object, origin: str, *, lax: bool = False, base: Path | None = None) -> Setting:
    try:
        value: Value = msgspec.convert(raw, key.type, strict=not lax)
    except msgspec.ValidationError as error:
        what = str(error).removesuffix(".")
        raise ConfigError(f"{origin}: {key.name} cannot be {shorten(repr(raw))}: {what}.") from None
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ConfigError(f"{origin}: {key.name} is empty or has a NUL character.")
        value = _expanded(key.name, value, base)
    return Setting(value=value, origin=origin)


def _expanded(name: str, value: str, base: Path | None) -> str:
    """Make a path absolute: a daemon has another working directory than the command that starts it.

    A model is a path where it is written as one (`./…`, `../…`, `~…`, `/…`), or where a folder of that name is there;
    otherwise it is a name.
    """
    path = Path.cwd() / (base or "") / Path(value).expanduser()
    written_as_path = value in {".", ".."} or value.startswith(("./", "../", "~", "/"))
    if name in _PATHS or (name in _MODELS and (written_as_path or (value not in _MODEL_NAMES and path.is_dir()))):
        return os.path.normpath(path)
    # `python` may be a command's name, to be found on the PATH.
    return str(Path(value).expanduser()) if name == "python" else value
