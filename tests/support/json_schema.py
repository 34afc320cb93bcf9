"""Says whether a value validates against the parts of JSON Schema that the tests use."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def validates(value: Any, schema: Any, root: Any = None) -> bool:
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[step] if step else target
        return validates(value, target, root)
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and not any(validates(value, branch, root) for branch in schema[keyword]):
            return False
    if not all(validates(value, part, root) for part in schema.get("allOf", ())):
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, _TYPES[k]) and not (isinstance(value, bool) and k != "boolean") for k in kinds
    ):
        return False
    if isinstance(value, dict):
        named = schema.get("properties", {})
        return all(name in value for name in schema.get("required", ())) and all(
            validates(each, named.get(name, schema.get("additionalProperties", True)), root)
            for name, each in value.items()
        )
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9) and all(
            validates(each, schema.get("items", True), root) for each in value
        )
    if isinstance(value, str):
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
            and re.search(schema.get("pattern", ""), value) is not None
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True
