"""SPEC.md: every MUST has an anchor of its own and names vectors that exist; no method, code or file is left out."""

from __future__ import annotations

import re
from pathlib import Path

from vlmd_protocol.errors import CODES, FRAME_CODES
from vlmd_protocol.limits import MAX_FRAME_BYTES, MAX_IN_FLIGHT, MAX_SCHEMA_BYTES, MAX_WAITING_PLAIN
from vlmd_protocol.messages import METHODS
from vlmd_protocol.paths import MAX_SOCKET_PATH_BYTES
from vlmd_protocol.vectors import FOLDERS, file_names, load

TEXT = (Path(__file__).parents[2] / "protocol" / "SPEC.md").read_text(encoding="utf-8")

ADDRESS = re.compile(rf"`((?:{'|'.join(FOLDERS)})/\w+)\.jsonl(?:#([\w.-]+))?`")
RULE = re.compile(r'- <a id="([a-z]+-\d+)"></a>\*\*([A-Z]+-\d+)\*\* ')


def blocks() -> list[str]:
    """Paragraphs and list items, each on one line."""
    found = re.split(r"\n(?:\n|(?=- ))", TEXT)
    return [" ".join(block.split()) for block in found if block.strip()]


def rules() -> dict[str, str]:
    found = {}
    for block in blocks():
        if start := RULE.match(block):
            assert start[1].upper() == start[2], block
            assert start[2] not in found, f"{start[2]} comes twice"
            found[start[2]] = block
    return found


def test_every_must_is_a_rule_that_names_its_vectors() -> None:
    for block in blocks():
        if re.search(r"\bMUST\b", block) and "RFC 2119" not in block:
            assert RULE.match(block), f"a MUST without an anchor: {block[:120]}"
            assert ADDRESS.search(block), f"a MUST without a vector: {block[:120]}"


def test_every_rule_has_a_must() -> None:
    assert len(rules()) > 60
    for name, block in rules().items():
        assert re.search(r"\bMUST\b", block), name
    print(f"\nrules: {len(rules())}, each with its vectors")


def test_numbers_run_on() -> None:
    last: dict[str, int] = {}
    for name in rules():
        prefix, number = name.split("-")
        assert int(number) == last.get(prefix, 0) + 1, name
        last[prefix] = int(number)


def test_every_vector_that_is_named_exists() -> None:
    known = {name for folder in FOLDERS for name in file_names(folder)}
    for file, case in ADDRESS.findall(TEXT):
        assert file in known, file
        assert not case or case in {found["name"] for found in load(file)}, f"{file}#{case}"
    # Nothing that looks like an address escapes the pattern.
    assert TEXT.count(".jsonl") == len(ADDRESS.findall(TEXT))


def test_every_file_of_vectors_is_named() -> None:
    named = {file for file, _ in ADDRESS.findall(TEXT)}
    assert named == {name for folder in FOLDERS for name in file_names(folder)}


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    anchors = headings | set(re.findall(r'<a id="([^"]+)">', TEXT))
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_every_method_code_and_limit_is_there() -> None:
    for name in (*METHODS, *CODES, *FRAME_CODES):
        assert re.search(rf"\b{name}\b", TEXT), name
    for limit in (MAX_FRAME_BYTES, MAX_IN_FLIGHT, MAX_SCHEMA_BYTES, MAX_WAITING_PLAIN, MAX_SOCKET_PATH_BYTES):
        assert re.search(rf"\b{limit:,}\b", TEXT), limit
