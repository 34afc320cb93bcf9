"""As much of JSON Schema 2020-12 as ``schema/v1.json`` uses; an unknown keyword is an error. ajv is the real thing."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SCHEMA: dict[str, Any] = json.loads((files("vlmd_protocol") / "schema" / "v1.json").read_text(encoding="utf-8"))

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_ANNOTATIONS = {"description", "default", "title", "$schema", "$id", "$defs"}


def errors(value: Any, name: str) -> list[str]:
    """Return why `value` is no `name`; nothing where it is one."""
    return list(_errors(value, {"$ref": f"#/$defs/{name}"}, name))


def _errors(value: Any, schema: Any, where: str) -> list[str]:
    if isinstance(schema, bool):
        return [] if schema else [f"{where} must not be there"]
    found = []
    for keyword, operand in schema.items():
        if keyword not in _ANNOTATIONS:
            found += _keyword(value, keyword, operand, where)
    return found


def _keyword(value: Any, keyword: str, operand: Any, where: str) -> list[str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match keyword:
        case "$ref":
            return _errors(value, SCHEMA["$defs"][operand.removeprefix("#/$defs/")], where)
        case "anyOf":
            tried = [_errors(value, choice, where) for choice in operand]
            return [] if [] in tried else [f"{where} is none of {len(operand)}: {tried[0]}"]
        case "properties":
            return _properties(value, operand, where) if isinstance(value, dict) else []
        case "items":
            items = value if isinstance(value, list) else []
            return [error for i, item in enumerate(items) for error in _errors(item, operand, f"{where}[{i}]")]
        case "type":
            holds = isinstance(value, _TYPES[operand]) and (operand == "boolean" or not isinstance(value, bool))
            holds = holds and value not in (float("inf"), float("-inf"))  # what JSON cannot have written
        case "required":
            holds = not isinstance(value, dict) or value.keys() >= set(operand)
        case "const":
            holds = value == operand and type(value) is type(operand)
        case "enum":
            holds = value in operand
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            holds = not is_number or _within(value, keyword, operand)
        case "minLength" | "maxLength":
            holds = not isinstance(value, str) or _within(len(value), keyword, operand)
        case "minItems" | "maxItems":
            holds = not isinstance(value, list) or _within(len(value), keyword, operand)
        case _:
            raise ValueError(f"the check does not know {keyword}")
    return [] if holds else [f"{where}: {keyword} {operand!r} does not hold for {str(value)[:80]!r}"]


def _properties(value: dict[str, Any], operand: dict[str, Any], where: str) -> list[str]:
    known = value.keys() & operand.keys()
    return [error for key in sorted(known) for error in _errors(value[key], operand[key], f"{where}.{key}")]


def _within(size: float, keyword: str, bound: float) -> bool:
    if keyword.startswith("exclusive"):
        return size > bound if keyword.endswith("Minimum") else size < bound
    return size >= bound if keyword.startswith("min") else size <= bound
