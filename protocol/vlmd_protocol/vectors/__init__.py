"""The conformance vectors that ship with the protocol; their format is in ``v1/README.md``.

::

    for case in load("decode/lines"):
        stream = to_bytes(case["input"])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Final, TypeAlias

Case: TypeAlias = dict[str, Any]

FOLDERS: Final = ("decode", "encode", "invalid", "dialogue", "adr006", "paths")

_ROOT = files("vlmd_protocol") / "vectors" / "v1"


def file_names(folder: str) -> list[str]:
    """Return the files of a folder, as `load` takes them."""
    names = (entry.name for entry in (_ROOT / folder).iterdir())
    return sorted(f"{folder}/{name.removesuffix('.jsonl')}" for name in names if name.endswith(".jsonl"))


def load(name: str) -> list[Case]:
    """Return the cases of one file, such as ``decode/lines``."""
    # The standard library's reader: some texts hold lone surrogates, which msgspec refuses.
    text = (_ROOT / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def load_folder(folder: str) -> Iterator[tuple[str, Case]]:
    """Yield each case of a folder with its address, such as ``dialogue/order.jsonl#plain-in-order``."""
    for name in file_names(folder):
        for case in load(name):
            yield f"{name}.jsonl#{case['name']}", case


def to_bytes(value: Any) -> bytes:
    """Return the bytes that a vector describes: a text, ``{"hex": …}``, ``{"repeat": …, "times": n}``, or a list."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return b"".join(map(to_bytes, value))
    if isinstance(value, Mapping):
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        return to_bytes(value["repeat"]) * int(value["times"])
    raise ValueError(f"no bytes: {value!r}")
