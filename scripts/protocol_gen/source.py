"""What the generated files are made from: the protocol's modules, and the comments beside their constants."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

import msgspec

from vlmd_protocol import limits, messages, paths
from vlmd_protocol.messages import METHODS, Wire
from vlmd_protocol.methods import ANSWERS
from vlmd_protocol.startup import StartupLine

Schema: TypeAlias = dict[str, Any]

# Unions and literals with a name of their own in every language.
ALIASES: Final = ("Id", "FinishReason", "Mode", "Priority", "ModelState", "DaemonState", "CacheState")

CONSTANT_MODULES: Final[tuple[ModuleType, ...]] = (limits, paths)


def client_types() -> list[type[Wire]]:
    """Return what stands in the params of requests, in the order of the methods."""
    return list(dict.fromkeys(METHODS.values()))


def server_types() -> list[type[Wire]]:
    """Return the lines of a daemon and the results in them."""
    found: list[type[Wire]] = []
    for answer in ANSWERS.values():
        found += [*answer.lines, *([] if answer.result is None else [answer.result])]
    return [*found, messages.DoneLine, messages.ResultLine, messages.ErrorLine, messages.EventLine]


def startup_types() -> list[type[Wire]]:
    """Return the start-up lines."""
    return list(StartupLine.__args__)


def constants() -> dict[str, tuple[int, str]]:
    """Return the public numbers of the protocol and why they are what they are, in the order of their definition."""
    found: dict[str, tuple[int, str]] = {}
    for module in CONSTANT_MODULES:
        for name, comment in comments(module).items():
            value = getattr(module, name)
            if isinstance(value, int) and name.isupper() and not name.startswith("_"):
                found[name] = (value, comment)
    return found


def alias_comment(name: str) -> str:
    """Return what is said above an alias."""
    return comments(messages)[name]


def comments(module: ModuleType) -> dict[str, str]:
    """Return the names that `module` assigns with an annotation, and the comment above each, empty if there is none."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    rows = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            row = node.lineno - 2
            while row >= 0 and rows[row].startswith("# "):
                above.insert(0, rows[row][2:])
                row -= 1
            found[node.target.id] = " ".join(above)
    return found


def docstring(cls: type[Wire]) -> str:
    """Return the docstring of a Struct with the names that its fields have on the wire."""
    words = {name: camel for name in re.findall(r"`(\w+)`", cls.__doc__ or "") if (camel := _wire_names().get(name))}
    text = inspect.cleandoc(cls.__doc__ or "")
    for name, camel in words.items():
        text = text.replace(f"`{name}`", f"`{camel}`")
    return text


@functools.cache
def _wire_names() -> dict[str, str]:
    types = [*client_types(), *server_types(), *startup_types()]
    return {field.name: field.encode_name for cls in types for field in fields(cls) if field.name != field.encode_name}


def fields(cls: type[Wire]) -> tuple[msgspec.inspect.Field, ...]:
    """Return the fields of a Struct as they are on the wire."""
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def always_there(cls: type[Wire], field: msgspec.inspect.Field) -> bool:
    """Whether the field is on every line that is encoded from `cls`."""
    if field.required:
        return True
    if field.default_factory is not msgspec.NODEFAULT:
        # A plain `list` or `dict` is left out like any default; a function of our own never is.
        return field.default_factory not in (list, dict)
    has_default = field.default is not msgspec.NODEFAULT  # UNSET shows as no default
    return has_default and not cls.__struct_config__.omit_defaults
