"""Bounds every string and array of a JSON Schema, so that an answer closes within a budget of tokens.

A model that repeats itself inside a string would otherwise use up its budget there and leave JSON that does not parse.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vlmd_bridge.engine.backend import SequenceError

# Longest default of an array that the schema leaves open.
_MAX_ITEMS = 16
_MIN_CHARS = 8
_MAX_DEPTH = 32
# A number within this many characters; the grammar keeps digits unbounded otherwise.
_SCALAR_TOKENS = 12

_KEYWORDS_WITH_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_KEYWORDS_WITH_NAMED_SCHEMAS = ("properties", "$defs", "definitions")


def bound_schema(text: str, max_tokens: int) -> str:
    """Return the schema `text` with a `maxLength` on every string and a `maxItems` on every array that has none.

    The budget is divided evenly among the strings that a largest answer holds, one character to a token: safe for
    text of ASCII under any tokenizer, and several times what a trained model needs for the same words.

    Raises:
        SequenceError: `text` is not a JSON Schema.
    """
    try:
        schema = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SequenceError("schema_invalid", f"the schema is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise SequenceError("schema_invalid", f"a JSON Schema is an object, not {type(schema).__name__}")
    for max_items in (_MAX_ITEMS, 8, 4, 2, 1):
        strings, fixed = _count(schema, max_items, 0)
        max_chars = (max_tokens - fixed) // max(1, strings)
        if max_chars >= _MIN_CHARS or not strings:
            break
    else:
        max_items, max_chars = 1, _MIN_CHARS
    return msgspec.json.encode(_bound(schema, max_items, max_chars, 0)).decode()


def _count(schema: Any, max_items: int, depth: int) -> tuple[int, int]:
    """Return the open strings in a largest answer and the tokens of everything else in it."""
    if depth > _MAX_DEPTH or not isinstance(schema, dict):
        return 0, _SCALAR_TOKENS
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return 0, max((len(msgspec.json.encode(value)) for value in values), default=0)
    strings, fixed = 0, 2
    branches = [_count(s, max_items, depth + 1) for k in ("anyOf", "oneOf") for s in _list(schema.get(k))]
    if branches:
        strings += max(s for s, _ in branches)
        fixed += max(f for _, f in branches)
    for name, value in _dict(schema.get("properties")).items():
        inner_strings, inner_fixed = _count(value, max_items, depth + 1)
        strings += inner_strings
        fixed += inner_fixed + len(name) + 4
    if _is_array(schema):
        items = schema.get("maxItems", max(max_items, schema.get("minItems", 0)))
        inner_strings, inner_fixed = _count(schema.get("items", {}), max_items, depth + 1)
        strings += inner_strings * items
        fixed += (inner_fixed + 1) * items
    elif _is_open_string(schema):
        strings += 1
    elif schema.get("type") in ("integer", "number", "boolean", "null") or "maxLength" in schema:
        fixed += schema.get("maxLength", _SCALAR_TOKENS)
    return strings, fixed


def _bound(schema: Any, max_items: int, max_chars: int, depth: int) -> Any:
    if depth > _MAX_DEPTH or not isinstance(schema, dict):
        return schema
    bounded = dict(schema)
    for keyword in _KEYWORDS_WITH_SCHEMAS:
        if keyword in schema:
            bounded[keyword] = [_bound(s, max_items, max_chars, depth + 1) for s in _list(schema[keyword])]
    for keyword in _KEYWORDS_WITH_NAMED_SCHEMAS:
        if keyword in schema:
            bounded[keyword] = {
                name: _bound(s, max_items, max_chars, depth + 1) for name, s in _dict(schema[keyword]).items()
            }
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            bounded[keyword] = _bound(schema[keyword], max_items, max_chars, depth + 1)
    if _is_array(schema):
        bounded.setdefault("maxItems", max(max_items, schema.get("minItems", 0)))
    elif _is_open_string(schema):
        bounded["maxLength"] = max(max_chars, schema.get("minLength", 0))
    elif schema.get("type") == "object" and "additionalProperties" not in schema and "properties" in schema:
        # JSON Schema leaves an object open by default: a model could add names without end.
        bounded["additionalProperties"] = False
    return bounded


def _is_array(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "array" or ("items" in schema and "type" not in schema)


def _is_open_string(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    is_string = kind == "string" or (isinstance(kind, list) and "string" in kind)
    return is_string and not {"maxLength", "pattern", "format", "const", "enum"} & schema.keys()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
