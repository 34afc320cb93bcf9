"""The generated files are what the Structs make of them, and cover all that is on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol_gen import main, schema, typescript
from vlmd_protocol import limits
from vlmd_protocol.errors import CODES, FRAME_CODES
from vlmd_protocol.messages import METHODS
from vlmd_protocol.methods import ANSWERS


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return schema.build()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/$defs/")
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_committed_files_are_up_to_date() -> None:
    assert main.differences() == []


def test_generating_twice_gives_the_same() -> None:
    assert main.generate() == main.generate()


def test_a_changed_file_is_a_difference(tmp_path: Path) -> None:
    main.write(tmp_path)
    assert main.differences(tmp_path) == []
    for name in main.generate():
        path = tmp_path / name
        path.write_text(path.read_text(encoding="utf-8") + "x", encoding="utf-8")
    assert len(main.differences(tmp_path)) == len(main.generate())


def test_every_method_has_an_answer() -> None:
    assert list(ANSWERS) == list(METHODS)


def test_references_lead_somewhere(made: dict[str, Any]) -> None:
    assert set(references(made)) <= set(made["$defs"])


def test_lines_say_what_is_always_sent(made: dict[str, Any]) -> None:
    definitions = made["$defs"]
    for name in ("ErrorLine", "ResultLine", "GenerateLine"):
        assert "done" in definitions[name]["required"], name
    assert "error" not in definitions["FrameResult"]["required"]
    assert "timestamp" in definitions["FrameResult"]["required"]
    assert "batchSize" not in definitions["DescribeParams"]["required"]


def test_unsent_nulls_are_not_allowed(made: dict[str, Any]) -> None:
    assert made["$defs"]["FrameResult"]["properties"]["error"] == {"type": "string"}
    assert {"type": "null"} in made["$defs"]["DescribeParams"]["properties"]["model"]["anyOf"]


def test_typescript_names_every_method_code_and_limit(made: dict[str, Any]) -> None:
    text = typescript.render(made)
    for name in METHODS:
        assert f"  readonly {name}: {{" in text
    for code in (*CODES, *FRAME_CODES):
        assert f"  {code}: {{" in text
    for name, value in vars(limits).items():
        if name.isupper():
            assert f"export const {name} = {value};" in text
    assert ": any" not in text
