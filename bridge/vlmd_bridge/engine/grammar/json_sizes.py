"""How small an answer to a JSON Schema can be, and by how much one choice can make it larger.

`JsonBudget` needs both to know when there is no more time for free choices; a schema without any finite answer is told
by the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.grammar.json_schema import resolve

# Each round follows one more $ref, where they stand in the most awkward order.
_MAX_ROUNDS = 64

# Where schemas stand inside a schema; elsewhere the same words may be names of properties, or values.
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE_SCHEMAS = ("items", "additionalProperties")

# A number, boolean or null, and what a format (a date, an address) can need.
_SCALAR_TOKENS = 4
_FORMAT_TOKENS = 24


class SchemaSizes:
    """Sizes in tokens; `count_tokens` tells those of a text."""

    def __init__(self, schema: Any, count_tokens: Callable[[str], int]) -> None:
        """Measure.

        Raises:
            SequenceError: no finite answer exists.
        """
        self._root = schema
        self._count_tokens = count_tokens
        self._nodes = list(_subschemas(schema))
        known = {id(node) for node in self._nodes}
        for node in self._nodes:  # it grows: a reference may lead to where no schema is looked for
            if "$ref" in node and id(target := resolve(schema, node["$ref"])) not in known:
                known.add(id(target))
                self._nodes += [target] if isinstance(target, dict) else []
        self._smallest: dict[int, float] = {}
        self._settle()
        self._recursive = False
        self._growth: dict[int, float] = {}
        smallest = self._least(schema)
        if math.isinf(smallest):
            raise SequenceError(
                "schema_invalid",
                "no finite answer fits the schema: something that is required contains itself "
                "(through $ref) without an end, or nothing is allowed at all",
            )
        # Tokens of a smallest answer.
        self.smallest = int(smallest)
        # How many more one choice of the model can make necessary (a list's next item, an optional property).
        self.growth = int(self._grow(schema, frozenset()))
        # How many are needed at most to close what was begun; None when an answer may nest without bounds.
        self.deepest = None if self._recursive else self.smallest + 2 * self.growth

    def _settle(self) -> None:
        """Find the least sizes: those of recursive schemas follow from others, so all are computed until none falls."""
        for _ in range(_MAX_ROUNDS):
            before = dict(self._smallest)
            for node in self._nodes:
                self._smallest[id(node)] = min(self._size(node), self._least(node))
            if self._smallest == before:
                return
        raise SequenceError("schema_invalid", f"the schema has $refs that lead to $refs more than {_MAX_ROUNDS} deep")

    def _least(self, schema: Any) -> float:
        if isinstance(schema, bool) or not schema:
            return math.inf if schema is False else 1.0
        return self._smallest.get(id(schema), math.inf)

    def _size(self, schema: dict[str, Any]) -> float:
        if "const" in schema or "enum" in schema:
            return min(self._values(schema), default=math.inf)
        if "$ref" in schema:
            return self._least(resolve(self._root, schema["$ref"]))
        size = sum(map(self._least, _list(schema.get("allOf"))))
        for keyword in ("anyOf", "oneOf"):
            if branches := _list(schema.get(keyword)):
                size += min(map(self._least, branches))
        kinds = _kinds(schema)
        return size + (min(self._size_of(schema, kind) for kind in kinds) if kinds else 0 if size else 1)

    def _size_of(self, schema: dict[str, Any], kind: object) -> float:
        if kind == "object":
            named = _dict(schema.get("properties"))
            required = _list(schema.get("required"))
            return 2 + sum(self._name(name) + self._least(named.get(name, True)) for name in required)
        if kind == "array":
            count = schema.get("minItems", 0)
            first = _list(schema.get("prefixItems"))[:count]
            return (
                2
                + sum(1 + self._least(item) for item in first)
                + _times(count - len(first), 1 + self._least(schema.get("items", True)))
            )
        if kind == "string":
            return (
                2 + int(schema.get("minLength", 0)) + (_FORMAT_TOKENS if schema.keys() & {"pattern", "format"} else 0)
            )
        return _SCALAR_TOKENS

    def _grow(self, schema: Any, inside: frozenset[int]) -> float:
        """Return the most tokens that choices along one path into `schema` add; `inside` are the schemas around it."""
        if isinstance(schema, bool) or not schema:
            self._recursive = self._recursive or schema is not False
            return 8
        if id(schema) in inside:
            self._recursive = True
            return 0
        known = self._growth.get(id(schema))
        if known is None:
            known = self._growth[id(schema)] = self._grow_inside(schema, inside | {id(schema)})
        return known

    def _grow_inside(self, schema: dict[str, Any], inside: frozenset[int]) -> float:
        if "const" in schema or "enum" in schema:
            values = list(self._values(schema))
            return max(values) - min(values) if values else 0
        if "$ref" in schema:
            return self._grow(resolve(self._root, schema["$ref"]), inside)
        grown: list[float] = [_SCALAR_TOKENS + _format_tokens(schema)]
        branches = [*_list(schema.get("anyOf")), *_list(schema.get("oneOf")), *_list(schema.get("allOf"))]
        least = min(map(self._least, branches), default=0)
        grown += [self._finite(branch) - least + self._grow(branch, inside) for branch in branches]
        required = _list(schema.get("required"))
        for name, value in _dict(schema.get("properties")).items():
            opened = 0 if name in required else self._name(name) + self._finite(value)
            grown.append(opened + self._grow(value, inside))
        if "object" in _kinds(schema) and schema.get("additionalProperties", "properties" not in schema) is not False:
            value = schema.get("additionalProperties", True)
            grown.append(8 + self._finite(value) + self._grow(value, inside))
        if "array" in _kinds(schema):
            for item in (*_list(schema.get("prefixItems")), schema.get("items", True)):
                grown.append(1 + self._finite(item) + self._grow(item, inside))
        if len(kinds := _kinds(schema)) > 1:
            sizes = [self._size_of(schema, kind) for kind in kinds]
            grown.append(max(sizes) - min(sizes))
        return max(grown)

    def _finite(self, schema: Any) -> float:
        # What cannot end cannot be begun either.
        size = self._least(schema)
        return 0 if math.isinf(size) else size

    def _values(self, schema: dict[str, Any]) -> Iterator[int]:
        values = [schema["const"]] if "const" in schema else _list(schema["enum"])
        return (self._count_tokens(msgspec.json.encode(value).decode()) for value in values)

    def _name(self, name: object) -> int:
        return self._count_tokens(msgspec.json.encode(name).decode()) + 2


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema inside `schema` and itself, the innermost first."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        inner: list[Any] = []
        if keyword in _NAMED_SCHEMAS:
            inner = list(_dict(value).values())
        elif keyword in _LISTED_SCHEMAS:
            inner = _list(value)
        elif keyword in _SINGLE_SCHEMAS:
            inner = [value]
        for each in inner:
            yield from _subschemas(each)
    yield schema


def _kinds(schema: dict[str, Any]) -> list[object]:
    kind = schema.get("type")
    if isinstance(kind, list):
        return kind
    if kind is not None:
        return [kind]
    if schema.keys() & {"properties", "required", "additionalProperties", "patternProperties"}:
        return ["object"]
    if schema.keys() & {"items", "prefixItems", "minItems", "maxItems"}:
        return ["array"]
    return ["string"] if schema.keys() & {"pattern", "format", "minLength", "maxLength"} else []


def _format_tokens(schema: dict[str, Any]) -> int:
    return _FORMAT_TOKENS if schema.keys() & {"pattern", "format"} else 0


def _times(count: int, size: float) -> float:
    return count * size if count > 0 else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
