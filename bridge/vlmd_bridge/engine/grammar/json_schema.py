"""Reads a JSON Schema, and refuses what would cost too much to enforce."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from vlmd_bridge.engine.backend import SequenceError

MAX_SCHEMA_BYTES = 64 * 1024

# llguidance reads 128 levels of JSON, of which a schema spends about two a level of the answer.
MAX_DEPTH = 96

# Of a character in a string or a regular expression: each step of the grammar takes as long as there are repeats, 0.1 s
# for 100,000.
MAX_REPEATS = 10_000


def parse_schema(text: str) -> Any:
    """Return the schema that `text` is.

    Raises:
        SequenceError: it is no JSON Schema, too large or nested too deeply, or a `$ref` in it leads nowhere.
    """
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise SequenceError("schema_invalid", f"the schema has {size} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SequenceError("schema_invalid", f"the schema is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise SequenceError("schema_invalid", f"a JSON Schema is an object, not {type(schema).__name__}")
    _check(schema)
    return schema


def resolve(root: Any, reference: object) -> Any:
    """Return the part of `root` that `reference` (``#/$defs/name``) names.

    Raises:
        SequenceError: there is none.
    """
    target = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise SequenceError("schema_invalid", f"$ref {reference!r} leads out of the schema, and nothing is fetched")
    for step in filter(None, unquote(reference[1:]).split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict) and name in target:
            target = target[name]
        else:
            raise SequenceError("schema_invalid", f"$ref {reference!r} leads nowhere")
    return target


def _check(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise SequenceError("schema_invalid", f"the schema is nested deeper than {MAX_DEPTH} levels")
        for part in level:
            for keyword in ("minLength", "minItems", "minProperties"):
                least = part.get(keyword) if isinstance(part, dict) else None
                if isinstance(least, int) and least > MAX_REPEATS:
                    raise SequenceError("schema_invalid", f"{keyword} is {least}; at most {MAX_REPEATS} are enforced")
        level = [
            value
            for part in level
            for value in (part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
            if isinstance(value, (dict, list))
        ]
