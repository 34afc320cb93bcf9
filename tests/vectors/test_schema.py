"""The JSON Schema against the vectors: what is valid validates, what is invalid does not."""

from __future__ import annotations

import json

import pytest

from tests.vectors.cases import cases
from tests.vectors.schema_check import errors
from vlmd_protocol.vectors import Case, load, to_bytes

DECODED = [*cases("decode/requests"), *cases("decode/replies"), *cases("decode/startup")]


@pytest.mark.parametrize("case", [case for case in DECODED if "schema" in case.values[0]])  # type: ignore[operator]
def test_valid_lines(case: Case) -> None:
    assert errors(json.loads(to_bytes(case["line"])), case["schema"]) == []


@pytest.mark.parametrize("case", cases("encode/lines"))
def test_what_a_server_sends(case: Case) -> None:
    assert errors(case["line"], case["type"]) == []


@pytest.mark.parametrize("case", cases("invalid/params"))
def test_invalid_params(case: Case) -> None:
    assert errors(json.loads(to_bytes(case["line"])), "Request") != []


def test_most_lines_are_checked() -> None:
    valid = sum("schema" in case for name in ("requests", "replies", "startup") for case in load(f"decode/{name}"))
    print(f"\nschema: {valid + len(load('encode/lines'))} valid lines, {len(load('invalid/params'))} invalid requests")
    assert valid >= 60
