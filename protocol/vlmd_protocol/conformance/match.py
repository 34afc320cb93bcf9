"""Patterns of expected lines; the rules stand in ``vectors/v1/README.md``."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def mismatch(pattern: Any, value: Any, where: str = "line") -> str | None:
    """Return why `value` does not match `pattern`, None if it does."""
    if isinstance(pattern, dict):
        operators = [key for key in pattern if key.startswith("$") and key != "$only"]
        if operators:
            return next((why for key in operators if (why := _operator(key, pattern[key], value, where))), None)
        return _object(pattern, value, where)
    if isinstance(pattern, list):
        if not isinstance(value, list) or len(value) != len(pattern):
            return f"{where} is {_shown(value)}, not an array of {len(pattern)}"
        pairs = zip(pattern, value, strict=True)
        return next((why for i, (p, v) in enumerate(pairs) if (why := mismatch(p, v, f"{where}[{i}]"))), None)
    # True equals 1 in Python, not in JSON.
    if isinstance(pattern, bool) != isinstance(value, bool) or pattern != value:
        return f"{where} is {_shown(value)}, not {_shown(pattern)}"
    return None


def _object(pattern: dict[str, Any], value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is {_shown(value)}, not an object"
    for key, expected in pattern.items():
        if key == "$only":
            continue
        inner = f"{where}.{key}"
        if expected == {"$absent": True}:
            if key in value:
                return f"{inner} is there"
        elif key not in value:
            return f"{inner} is missing"
        elif why := mismatch(expected, value[key], inner):
            return why
    unlisted = value.keys() - pattern.keys()
    if pattern.get("$only") and unlisted:
        return f"{where} has {', '.join(sorted(unlisted))} too"
    return None


def _operator(name: str, operand: Any, value: Any, where: str) -> str | None:
    match name:
        case "$any":
            holds = True
        case "$type":
            holds = isinstance(value, _TYPES[operand]) and (operand == "boolean" or not isinstance(value, bool))
        case "$contains":
            holds = isinstance(value, str | list) and operand in value
        case "$length":
            holds = isinstance(value, str | list) and len(value) == operand
        case "$min":
            holds = isinstance(value, int | float) and not isinstance(value, bool) and value >= operand
        case "$one_of":
            holds = any(mismatch(choice, value) is None for choice in operand)
        case _:
            raise ValueError(f"no operator {name}")
    return None if holds else f"{where} is {_shown(value)}, not {name} {_shown(operand)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
