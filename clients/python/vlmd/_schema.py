"""What an answer must look like: a JSON Schema, or a Python type that one is made of and answers are returned as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, cast

import msgspec

from vlmd._types import Value_co
from vlmd_protocol.limits import MAX_SCHEMA_BYTES

_DEFS = "#/$defs/"


class Mismatch(Exception):
    """An answer is not of the type that was asked for."""


class Schema(Generic[Value_co]):
    """The schema of one call.

    Attributes:
        document: JSON Schema, as the daemon gets it.
    """

    def __init__(self, document: dict[str, Any], convert: Callable[[Any], Value_co]) -> None:
        self.document = document
        self._convert = convert

    def value_of_text(self, text: str) -> Value_co:
        """Return the value that `text`, JSON, stands for.

        Raises:
            Mismatch: it is not JSON, or not of the type.
        """
        try:
            record = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise Mismatch(f"The text is not JSON: {error}.") from None
        return self.value_of(record)

    def value_of(self, record: Any) -> Value_co:
        """Return the value of a decoded answer.

        Raises:
            Mismatch: it is not of the type.
        """
        try:
            return self._convert(record)
        except (ValueError, TypeError, RecursionError) as error:  # msgspec's and pydantic's are ValueErrors
            raise Mismatch(f"The answer is not of the type asked for: {error}") from None


def schema_of(schema: object) -> Schema[Any] | None:
    """Return the schema of what a caller passed, None for None.

    Args:
        schema: a JSON Schema as a mapping; a type that msgspec knows (a Struct, a dataclass, a TypedDict, ``list[X]``,
            ``Literal``, with the constraints of `msgspec.Meta`); or a model of pydantic 2.

    Raises:
        TypeError: it is none of these, or is no JSON.
    """
    if schema is None:
        return None
    if isinstance(schema, Mapping):
        return Schema(_checked(dict(schema)), lambda record: record)
    if isinstance(schema, type) and hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate"):
        # By its methods, so that pydantic need not be there.
        model = cast("Any", schema)
        return Schema(_checked(_inlined(model.model_json_schema())), model.model_validate)
    try:
        document = msgspec.json.schema(schema)
    except (TypeError, ValueError, NameError) as error:  # NameError: an annotation that names nothing
        raise TypeError(
            "`schema` takes a JSON Schema (a dict), a msgspec Struct, a dataclass, a TypedDict, another type that "
            f"msgspec knows, or a pydantic model, not {schema!r}: {str(error).splitlines()[0]}"
        ) from None
    return Schema(
        _checked(_inlined(document)),
        lambda record: msgspec.convert(record, cast("type[Any]", schema), str_keys=True),
    )


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    try:
        msgspec.json.encode(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"`schema` is no JSON: {error}") from None
    return document


def _inlined(document: dict[str, Any]) -> dict[str, Any]:
    """Return `document` with definitions in place of the references to them, where they do not contain themselves.

    An engine that sizes an answer by its schema sees it whole then. Types that are used many times could outgrow the
    daemon's limit that way; those keep their references.
    """
    definitions = document.get("$defs", {})
    kept: set[str] = set()

    def resolve(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolve(item, within) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        rest = {name: resolve(value, within) for name, value in node.items() if name not in ("$ref", "$defs")}
        name = reference[len(_DEFS) :] if isinstance(reference, str) and reference.startswith(_DEFS) else None
        if name is None or name not in definitions:
            return rest if reference is None else {"$ref": reference, **rest}
        if name in recursive:
            kept.add(name)
            return {"$ref": reference, **rest}
        return resolve(definitions[name], (*within, name)) | rest

    recursive = _recursive(definitions)
    found: dict[str, Any] = resolve(document, ())
    if kept:
        found["$defs"] = {name: resolve(definitions[name], ()) for name in definitions if name in recursive}
    return found if len(msgspec.json.encode(found)) <= MAX_SCHEMA_BYTES else document


def _recursive(definitions: Mapping[str, Any]) -> set[str]:
    """Return the definitions that contain themselves."""
    uses = {name: _references(definition) & definitions.keys() for name, definition in definitions.items()}

    def reach(name: str) -> set[str]:
        reached: set[str] = set()
        todo = list(uses[name])
        while todo:
            if (user := todo.pop()) not in reached:
                reached.add(user)
                todo += uses[user]
        return reached

    return {name for name in definitions if name in reach(name)}


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_references, node))
    if not isinstance(node, dict):
        return set()
    reference = node.get("$ref")
    own = {reference[len(_DEFS) :]} if isinstance(reference, str) and reference.startswith(_DEFS) else set()
    return own.union(*map(_references, node.values()))
