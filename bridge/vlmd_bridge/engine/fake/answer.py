"""What the fake backend answers: a pure function of the prompt, the pixels of its pictures and the seed."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.grammar.json_schema import parse_schema
from vlmd_bridge.record import Record, format_interleaved, format_record
from vlmd_bridge.workers.messages import (
    Constraint,
    Count,
    Part,
    Picture,
    RecordConstraint,
    RegexConstraint,
    SchemaConstraint,
    Start,
    Text,
)
from vlmd_protocol.errors import shorten

ACTIVITIES = ("coding", "reading", "writing", "debugging", "chatting", "browsing", "reviewing", "designing")
APPS = ("VS Code", "Terminal", "Chrome", "Slack", "Figma", "Excel", "Zoom", "Keynote")
TOPICS = ("source code", "shell", "documentation", "planning", "layout", "budget", "meeting", "slides")

# What its plain text is made of: characters of one to four bytes, and some that are several code points.
WORDS = (
    *("the", "window", "shows", "a", "terminal", "with", "green", "text", "and", "it", "scrolls"),
    *("café", "naïve", "Grüße", "日本語", "漢字", "Привет", "🙂", "👩‍💻", "e\u0301t\u0301"),
)

_PLAIN_ANSWERS = ("yes", "no", "true", "false", "ok", "a", "A", "abc", "0", "1", "7", "42", "2024-01-01", "a-1", "")
_MAX_SCHEMA_DEPTH = 16

# `re` backtracks: on a longer text a pattern like ``(x+x+)+y`` takes its time.
_MAX_LITERAL = 16


def picture_digest(arena: mmap.mmap, picture: Picture) -> str:
    """Return the first 8 hex digits of the BLAKE2b of the picture's RGB bytes."""
    return pixels_digest(arena[picture.offset : picture.offset + picture.width * picture.height * 3])


def pixels_digest(pixels: bytes) -> str:
    """Return the 8 hex digits by which the fake names a picture with these RGB bytes."""
    return hashlib.blake2b(pixels, digest_size=4).hexdigest()


def picture_record(digest: str, width: int, height: int) -> Record:
    """Return the record of the picture with `digest` that reached the engine with this size."""
    a, b, c, d = bytes.fromhex(digest)
    apps = (APPS[b % 8],) if b < 128 else (APPS[b % 8], APPS[(b + 3) % 8])
    topics = (TOPICS[c % 8],) if d < 128 else (TOPICS[c % 8], TOPICS[(c + 5) % 8])
    return Record(
        description=f"Picture {digest} {width}x{height}", activity=ACTIVITIES[a % 8], apps=apps, topics=topics
    )


def answer(start: Start, digests: Sequence[str]) -> str:
    """Return the whole answer to `start`; `digests` are those of its pictures, in order.

    Raises:
        SequenceError: the constraint is wrong, or beyond a fake.
    """
    pictures = [part for part in parts_of(start) if isinstance(part, Picture)]
    records = [picture_record(d, p.width, p.height) for d, p in zip(digests, pictures, strict=True)]
    if start.constraint is not None:
        return _constrained(start.constraint, records)
    seen = "; ".join(record.description for record in records)
    if records and not any(isinstance(part, Text) for part in start.parts):
        return seen
    return f"{seen}: {plain_text(start, digests)}" if records else plain_text(start, digests)


def parts_of(prompt: Start | Count) -> list[Part]:
    """Return the parts of all turns, in order."""
    return [*(part for turn in prompt.history for part in turn.parts), *prompt.parts]


def plain_text(start: Start, digests: Sequence[str] = ()) -> str:
    """Return a sentence of 12 to 27 `WORDS`.

    A BLAKE2b digest chooses them: of the roles and texts of all turns, `digests`, and above temperature 0 of the seed
    (without one, of chance) and the rest of the sampling.
    """
    chosen = hashlib.blake2b(digest_size=32)
    for turn in start.history:
        chosen.update(f"{turn.role}\0".encode())
    for part in parts_of(start):
        chosen.update(f"{part.text}\0".encode() if isinstance(part, Text) else b"picture\0")
    chosen.update("\0".join(digests).encode())
    if start.sampling.temperature > 0:
        chosen.update(msgspec.msgpack.encode(start.sampling))
        if start.sampling.seed is None:
            chosen.update(os.urandom(16))
    picks = chosen.digest()
    words = [WORDS[pick % len(WORDS)] for pick in picks[: 12 + picks[-1] % 16]]
    return f"{words[0].capitalize()} {' '.join(words[1:])}."


def thinking_of(start: Start) -> str:
    """Return the thinking before the answer to `start`."""
    characters = sum(len(part.text) for part in parts_of(start) if isinstance(part, Text))
    return f"The prompt has {characters} characters in {len(start.history) + 1} turns. 考える…"


def _constrained(constraint: Constraint, records: list[Record]) -> str:
    if isinstance(constraint, RecordConstraint):
        if len(records) < constraint.frame_count:
            records += [Record(description="No picture", activity="unknown", apps=(), topics=())] * (
                constraint.frame_count - len(records)
            )
        if constraint.labelled:
            return format_interleaved(records[: constraint.frame_count])
        return format_record(records[0])
    word = records[0].description if records else "text"
    if isinstance(constraint, SchemaConstraint):
        return msgspec.json.encode(_instance(parse_schema(constraint.schema), word, 0)).decode()
    return _matching(constraint, word)


def _matching(constraint: RegexConstraint, word: str) -> str:
    try:
        pattern = re.compile(constraint.pattern)
    except re.error as error:
        raise SequenceError("schema_invalid", f"the pattern is no regular expression: {error}") from None
    literals = re.split(r"[|()]", constraint.pattern)
    for text in (word, *_PLAIN_ANSWERS, *(literal for literal in literals if len(literal) <= _MAX_LITERAL)):
        if pattern.fullmatch(text):
            return text
    raise SequenceError(
        "schema_invalid", f"the fake backend knows no text that matches {shorten(constraint.pattern)!r}"
    )


def _instance(schema: Any, word: str, depth: int) -> object:
    """Return a small value that validates against the plain parts of JSON Schema."""
    if depth > _MAX_SCHEMA_DEPTH or not isinstance(schema, (dict, bool)) or schema is False:
        raise SequenceError("schema_invalid", "the fake backend cannot fill this schema")
    if schema is True:
        return word
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for combined in ("anyOf", "oneOf"):
        if schema.get(combined):
            return _instance(schema[combined][0], word, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: _instance(value, word, depth + 1) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema.get("items", True), word, depth + 1)] * max(1, schema.get("minItems", 0))
    if kind == "string" and "pattern" in schema:
        return _matching(RegexConstraint(pattern=schema["pattern"]), word)
    plain: dict[str, object] = {
        "string": word[: schema.get("maxLength", len(word))].ljust(schema.get("minLength", 0), "."),
        "integer": schema.get("minimum", 0),
        "number": schema.get("minimum", 0),
        "boolean": True,
        "null": None,
    }
    if kind not in plain:
        raise SequenceError("schema_invalid", f"the schema names the type {kind!r}, which JSON does not have")
    return plain[kind]
