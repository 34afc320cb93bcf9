"""Bounds every string and array of a JSON Schema, so that each part of an answer gets its share of the tokens.

A model that repeats itself inside a string would otherwise use up its budget there. What is cut short all the same is
closed by `JsonBudget`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vlmd_bridge.engine.grammar.json_schema import MAX_REPEATS, resolve

# Longest default of an array that the schema leaves open, and how long one usually is: what shares are computed with.
_MAX_ITEMS = 16
_USUAL_ITEMS = 2

# No string's share is less than this: a name should fit.
_MIN_CHARS = 24

# A number within this many characters; the grammar keeps digits unbounded otherwise.
_SCALAR_TOKENS = 12

_KEYWORDS_WITH_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_KEYWORDS_WITH_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")


def bound_schema(schema: Any, max_tokens: int) -> Any:
    """Return `schema` with a `maxLength` on every string and a `maxItems` on every array that has none.

    The budget is divided evenly among the strings of an answer whose open arrays have two items, one character to a
    token: several times what a trained model needs for the same words.
    """
    strings, fixed = _Usual(schema).count(schema)
    max_chars = max(_MIN_CHARS, (max_tokens - fixed) // max(1, strings))
    return _bound(schema, _MAX_ITEMS, min(max_chars, MAX_REPEATS))


class _Usual:
    """Counts what an answer holds, behind references too; one inside itself counts once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, tuple[int, int]] = {}

    def count(self, schema: Any) -> tuple[int, int]:
        """Return the open strings and the tokens of everything else in it."""
        if not isinstance(schema, dict):
            return 0, _SCALAR_TOKENS
        if id(schema) not in self._known:
            self._known[id(schema)] = 0, _SCALAR_TOKENS  # for whoever asks from inside
            self._known[id(schema)] = self._count(schema)
        return self._known[id(schema)]

    def _count(self, schema: dict[str, Any]) -> tuple[int, int]:
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return 0, max((len(msgspec.json.encode(value)) for value in values), default=0)
        if "$ref" in schema:
            return self.count(resolve(self._root, schema["$ref"]))
        strings, fixed = 0, 2
        branches = [self.count(s) for k in ("anyOf", "oneOf") for s in _list(schema.get(k))]
        if branches:
            strings += max(s for s, _ in branches)
            fixed += max(f for _, f in branches)
        for part in _list(schema.get("allOf")):
            inner_strings, inner_fixed = self.count(part)
            strings, fixed = strings + inner_strings, fixed + inner_fixed
        for name, value in _dict(schema.get("properties")).items():
            inner_strings, inner_fixed = self.count(value)
            strings += inner_strings
            fixed += inner_fixed + len(name) + 4
        if _is_array(schema):
            items = min(schema.get("maxItems", _USUAL_ITEMS), max(_USUAL_ITEMS, schema.get("minItems", 0)))
            inner_strings, inner_fixed = self.count(schema.get("items", {}))
            strings += inner_strings * items
            fixed += (inner_fixed + 1) * items
        elif _is_open_string(schema):
            strings += 1
        elif schema.get("type") in ("integer", "number", "boolean", "null") or "maxLength" in schema:
            fixed += min(schema.get("maxLength", _SCALAR_TOKENS), _MIN_CHARS)
        return strings, fixed


def _bound(schema: Any, max_items: int, max_chars: int) -> Any:
    if not isinstance(schema, dict):
        return schema
    bounded = dict(schema)
    for keyword in _KEYWORDS_WITH_SCHEMAS:
        if keyword in schema:
            bounded[keyword] = [_bound(s, max_items, max_chars) for s in _list(schema[keyword])]
    for keyword in _KEYWORDS_WITH_NAMED_SCHEMAS:
        if keyword in schema:
            bounded[keyword] = {name: _bound(s, max_items, max_chars) for name, s in _dict(schema[keyword]).items()}
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            bounded[keyword] = _bound(schema[keyword], max_items, max_chars)
    if _is_array(schema):
        bounded.setdefault("maxItems", max(max_items, schema.get("minItems", 0)))
    elif _is_open_string(schema):
        bounded["maxLength"] = max(max_chars, schema.get("minLength", 0))
    elif "maxLength" in schema:
        bounded["maxLength"] = min(schema["maxLength"], MAX_REPEATS)
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
