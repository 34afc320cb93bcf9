"""The vector files themselves: ASCII, one object a line, addresses that are unique; prints their counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import vlmd_protocol
from vlmd_protocol.conformance.run import NEEDS
from vlmd_protocol.vectors import FOLDERS, file_names, load_folder, to_bytes

ROOT = Path(vlmd_protocol.__file__).parent / "vectors" / "v1"

FIELDS = {
    "decode/lines": {"name", "about", "input", "lines", "rest", "max_frame_bytes"},
    "decode/requests": {"name", "about", "line", "request", "schema"},
    "decode/replies": {"name", "about", "line", "reply", "schema"},
    "decode/startup": {"name", "about", "line", "outcome", "schema"},
    "encode/requests": {"name", "about", "type", "fields", "line", "side"},
    "encode/lines": {"name", "about", "type", "fields", "line", "side", "ascii"},
    "invalid/requests": {"name", "about", "line", "code", "id"},
    "invalid/params": {"name", "about", "line", "code", "id"},
    "invalid/streams": {"name", "about", "input", "max_frame_bytes", "before", "code"},
    "invalid/lines": {"name", "about", "line", "asked", "code"},
    "paths/names": {"name", "about", "check", "uid", "folder", "shared", "path", "lock"},
    "paths/length": {"name", "about", "check", "path", "outcome"},
    "paths/folder": {"name", "about", "check", "make", "outcome", "needs"},
    "paths/ensure": {"name", "about", "check", "make", "umask", "outcome", "mode"},
    "paths/socket": {"name", "about", "check", "make", "outcome", "needs"},
    "paths/start": {"name", "about", "check", "at", "make", "startup", "kept", "socket_mode", "peer", "needs"},
}
DIALOGUE_FIELDS = {"name", "about", "needs", "ascii", "events", "steps"}


def test_counts() -> None:
    counts = Counter(name.split("/")[0] for folder in FOLDERS for name, _ in load_folder(folder))
    print(f"\nvectors: {', '.join(f'{folder} {counts[folder]}' for folder in FOLDERS)}; {counts.total()} in all")
    assert counts.total() >= 200
    assert set(counts) == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_files(folder: str) -> None:
    for name in file_names(folder):
        data = (ROOT / f"{name}.jsonl").read_bytes()
        assert data.isascii()
        assert data.endswith(b"\n")
        cases = [json.loads(line) for line in data.splitlines()]
        names = [case["name"] for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", case["name"]), case["name"]
            assert case.keys() <= FIELDS.get(name, DIALOGUE_FIELDS), case["name"]
            assert set(case.get("needs", [])) <= {*NEEDS, "root"}


def test_readme_tells_every_file_and_field() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        for name in file_names(folder):
            assert f"`{name}.jsonl`" in text, name
    for field in {*DIALOGUE_FIELDS, *(field for fields in FIELDS.values() for field in fields)}:
        assert f"`{field}`" in text, field
    for need in (*NEEDS, "root"):
        assert f"`{need}`" in text, need


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("é", b"\xc3\xa9"),
        ({"hex": "ff00"}, b"\xff\x00"),
        ({"repeat": "ab", "times": 3}, b"ababab"),
        (["a", {"repeat": {"hex": "00"}, "times": 2}], b"a\0\0"),
        ([], b""),
    ],
)
def test_bytes(value: Any, data: bytes) -> None:
    assert to_bytes(value) == data
