"""What can be set: the one table of names, types, bounds, defaults and meanings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

import msgspec

from vlmd_bridge.engine import switches
from vlmd_bridge.store.bounds import DAY_S, DEFAULT_BOUNDS
from vlmd_protocol.limits import DEFAULT_BATCH_SIZE, DEFAULT_MAX_TOKENS, MAX_BATCH_SIZE, MAX_TOKENS
from vlmd_protocol.messages import Mode

Value: TypeAlias = str | int | float | bool | None

# Picture processes and BLAS threads beyond the largest machines in use are a typing error.
_MAX_PROCESSES: Final = 64
_MAX_THREADS: Final = 1024

# Rows of a batch: above it, a decode step no longer gains from further rows on any machine we know of.
_MAX_WIDTH: Final = 256

_WEEK_S: Final = 7 * 24 * 3600

_SWITCH: Final = f"(?:{'|'.join(switches.NAMES)})"
_SWITCHES: Final = f"^(?:{switches.NONE}| *{_SWITCH} *(?:, *{_SWITCH} *)*)$"

# What every address space of a machine that runs a model can give to one picture.
_MAX_BYTES: Final = 1 << 40


# Below this a SQLite file has room for little but its own tables.
_MIN_CACHE_BYTES: Final = 1024 * 1024
_MAX_CACHE_AGE_DAYS: Final = 3650


class ConfigError(Exception):
    """A setting, or the file it stands in, cannot be used; the message names the place and what would do."""

    code = "config_invalid"


def _about(meaning: str, *, adr: str | None = None, answers: bool = False, **bounds: Any) -> msgspec.Meta:
    """Return the annotation of a setting.

    `adr` is the variable of ADR-006 that is read where the `VLMD_*` one is unset; `answers` marks what changes the
    answers of a daemon, which its fingerprint is made of.
    """
    return msgspec.Meta(description=meaning, extra={"adr": adr, "answers": answers}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, resolved. The attribute's name is the key of the file; `VLMD_` and it in capitals the variable."""

    model: Annotated[str | None, _about("model: a name or a folder", adr="ESCRIBANO_VLM_MODEL", answers=True)] = None
    text_model: Annotated[
        str | None, _about("second model, for prompts without pictures: a name or a folder", answers=True)
    ] = None
    socket: Annotated[str | None, _about("socket path", adr="ESCRIBANO_MLX_SOCKET_PATH")] = None
    python: Annotated[str | None, _about("interpreter that runs the daemon", adr="ESCRIBANO_PYTHON_PATH")] = None
    batch_size: Annotated[
        int, _about("frames per streamed line", adr="ESCRIBANO_VLM_BATCH_SIZE", ge=1, le=MAX_BATCH_SIZE)
    ] = DEFAULT_BATCH_SIZE
    max_tokens: Annotated[int, _about("tokens per batch", adr="ESCRIBANO_VLM_MAX_TOKENS", ge=1, le=MAX_TOKENS)] = (
        DEFAULT_MAX_TOKENS
    )
    mode: Annotated[Mode, _about("parallel or interleaved")] = "parallel"
    verbose: Annotated[bool, _about("log at debug level", adr="ESCRIBANO_VERBOSE")] = False
    log_file: Annotated[str | None, _about("log file")] = None
    idle_timeout_s: Annotated[
        float, _about("end a daemon after so long without connection and job, 0 for never", ge=0, le=_WEEK_S)
    ] = 0.0
    drain_timeout_s: Annotated[float, _about("time for running work at the end", ge=0, le=_WEEK_S)] = 10.0
    width: Annotated[int, _about("frames decoded together, 0 for the engine's choice", ge=0, le=_MAX_WIDTH)] = 0
    threads: Annotated[int, _about("engine threads, 0 for the engine's choice", ge=0, le=_MAX_THREADS)] = 0
    engine_off: Annotated[str, _about("optimisations that the engine does without, by comma", pattern=_SWITCHES)] = (
        switches.NONE
    )
    # A worker tells of its steps once a second.
    hang_timeout_s: Annotated[
        float, _about("end an engine that has work and shows no progress for so long", ge=2, le=_WEEK_S)
    ] = 120.0
    crash_window_s: Annotated[
        float, _about("an engine that crashed five times within so long rests as long", gt=0, le=_WEEK_S)
    ] = 180.0
    image_processes: Annotated[
        int, _about("processes that open pictures, 0 for one to four cores", ge=0, le=_MAX_PROCESSES)
    ] = 0
    image_timeout_s: Annotated[float, _about("time for one picture", gt=0, le=3600)] = 20.0
    max_image_pixels: Annotated[
        int,
        _about(
            "pixels that a picture is shrunk to, 0 for as many as the model takes", answers=True, ge=0, le=_MAX_BYTES
        ),
    ] = 2048 * 32 * 32
    max_source_pixels: Annotated[int, _about("largest picture, in pixels", answers=True, ge=1, le=_MAX_BYTES)] = (
        100_000_000
    )
    max_source_bytes: Annotated[int, _about("largest picture file, in bytes", answers=True, ge=1, le=_MAX_BYTES)] = (
        256 * 1024 * 1024
    )
    image_memory_bytes: Annotated[
        int, _about("memory limit of an image process, in bytes", ge=256 * 1024 * 1024, le=_MAX_BYTES)
    ] = 2 * 1024 * 1024 * 1024
    cache: Annotated[bool, _about("keep results, and do not infer again what was inferred before")] = False
    cache_file: Annotated[str | None, _about("result store")] = None
    cache_max_bytes: Annotated[
        int, _about("size of the result store, in bytes", ge=_MIN_CACHE_BYTES, le=_MAX_BYTES)
    ] = DEFAULT_BOUNDS.max_bytes
    cache_max_age_days: Annotated[float, _about("days that an unused result is kept", gt=0, le=_MAX_CACHE_AGE_DAYS)] = (
        DEFAULT_BOUNDS.max_age_s / DAY_S
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One setting's description.

    Attributes:
        name: key of the file, attribute of `Settings`.
        type: what msgspec converts to, bounds included.
        default: the built-in value.
        meaning: a line for people.
        variables: environment variables, the first that is set counts.
        answers: whether it changes what a daemon answers.
    """

    name: str
    type: Any
    default: Value
    meaning: str
    variables: tuple[str, ...]
    answers: bool


@cache
def keys() -> tuple[Key, ...]:
    """Return the description of every setting, in the order of `Settings`."""
    found = []
    for name, annotated in get_type_hints(Settings, include_extras=True).items():
        meta: msgspec.Meta = annotated.__metadata__[0]
        extra = meta.extra or {}
        adr: str | None = extra["adr"]
        own = f"VLMD_{name.upper()}"
        found.append(
            Key(
                name=name,
                type=annotated,
                default=getattr(_DEFAULTS, name),
                meaning=meta.description or "",
                variables=(own,) if adr is None else (own, adr),
                answers=extra["answers"],
            )
        )
    return tuple(found)


_DEFAULTS: Final = Settings()
