"""The documents' tables have every setting, code and exception of the code, and their links lead somewhere."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import vlmd
from tests.docs.blocks import CHAPTERS, DOCS, sections, text
from tests.support.settings_table import row_start
from vlmd_bridge.cli import mlx_bridge
from vlmd_bridge.config.settings import ConfigError, keys
from vlmd_protocol import errors
from vlmd_protocol.errors import CODES, FRAME_CODES, RequestError, VlmdError
from vlmd_protocol.limits import MAX_FRAME_BYTES, MAX_IN_FLIGHT, MAX_SCHEMA_BYTES, MAX_WAITING_PLAIN

# Codes of the command line that have no exception.
_CLI_CODES = ("usage", "output_unusable", "log_not_found", "io_error", ConfigError.code)

# ADR-006's table: variable, default.
_ADR_TABLE = {
    "ESCRIBANO_VLM_MODEL": "`mlx-community/Qwen3-VL-2B-Instruct-bf16`",
    "ESCRIBANO_VLM_BATCH_SIZE": "4",
    "ESCRIBANO_VLM_MAX_TOKENS": "2000",
    "ESCRIBANO_MLX_SOCKET_PATH": "`/tmp/escribano-mlx.sock`",
    "ESCRIBANO_PYTHON_PATH": "found",
    "ESCRIBANO_VERBOSE": "false",
}


def _rows(chapter: str, first: str) -> list[list[str]]:
    """Return the cells of the rows whose first cell is `first`."""
    rows = [line.strip("|").split("|") for line in text(chapter).splitlines() if line.startswith(f"| `{first}` |")]
    return [[cell.strip() for cell in row] for row in rows]


def _exceptions() -> list[type[VlmdError]]:
    classes = vars(errors).values()
    return [kind for kind in classes if inspect.isclass(kind) and issubclass(kind, VlmdError)]


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_every_setting_with_its_variables_default_and_bounds(key: Any) -> None:
    [row] = [line for line in text("configuration").splitlines() if line.startswith(row_start(key))]
    bounds = key.type.__metadata__[0]
    least = bounds.ge if bounds.ge is not None else bounds.gt
    if least is not None:
        assert f"| {'over ' if bounds.gt is not None else ''}{least} to {bounds.le} |" in row
    for word in {"mode": ("parallel", "interleaved")}.get(key.name, ()):
        assert word in row


def test_what_changes_answers_is_named() -> None:
    for key in keys():
        if key.answers:
            assert f"`{key.name}`" in text("configuration").partition("change what a daemon answers")[0]


def test_adr_006s_configuration_table() -> None:
    for variable, default in _ADR_TABLE.items():
        [row] = _rows("adr-006", variable)
        assert row[2] == default
    assert _ADR_TABLE["ESCRIBANO_VLM_MODEL"] == f"`{mlx_bridge.DEFAULT_MODEL}`"
    assert _ADR_TABLE["ESCRIBANO_MLX_SOCKET_PATH"] == f"`{mlx_bridge.DEFAULT_SOCKET}`"
    named = {variable for key in keys() for variable in key.variables[1:]}
    assert named == _ADR_TABLE.keys()


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_a_request_with_its_exception(code: str) -> None:
    [row] = _rows("troubleshooting", code)
    assert row[1] == f"`{CODES[code].exception.__name__}`"
    assert ("retryable" in row[2]) == CODES[code].retryable
    assert row[3]


@pytest.mark.parametrize("code", FRAME_CODES)
def test_every_code_of_a_frame(code: str) -> None:
    [row] = _rows("troubleshooting", code)
    assert ("retryable" in row[1]) == FRAME_CODES[code].retryable
    assert row[2]


@pytest.mark.parametrize("kind", _exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_with_its_code(kind: type[VlmdError]) -> None:
    if issubclass(kind, RequestError) and kind is not RequestError:
        assert f"`{kind.__name__}`" in text("troubleshooting")
        return
    [row] = _rows("troubleshooting", kind.__name__)
    # A start that failed has the code that its own argument gives.
    code = "start_failed" if kind is errors.StartError else getattr(kind, "code", None)
    assert kind is RequestError or f"`{code}`" in row[1]
    assert kind.__name__ in vlmd.__all__


@pytest.mark.parametrize("code", _CLI_CODES)
def test_every_code_of_the_command_line(code: str) -> None:
    assert _rows("troubleshooting", code)


def test_no_code_of_the_command_line_is_missing() -> None:
    sources = DOCS.parent / "bridge" / "vlmd_bridge" / "cli"
    used = {
        code
        for file in sources.glob("*.py")
        for code in re.findall(r'report_error\([^)]*?\), "(\w+)"|report_error\([^"\n]*"(\w+)"', file.read_text())
        for code in code
        if code
    }
    assert used
    assert used <= {*_CLI_CODES, *CODES}


def test_numbers_in_the_text_are_the_codes() -> None:
    busy = " ".join(_rows("troubleshooting", "busy")[0])
    assert f"{MAX_IN_FLIGHT} on the connection" in busy
    assert f"{MAX_WAITING_PLAIN} wait" in busy
    assert f"{MAX_FRAME_BYTES >> 20} MiB" in _rows("troubleshooting", "frame_too_large")[0][2]
    assert f"{MAX_SCHEMA_BYTES >> 10} KiB" in _rows("troubleshooting", "schema_invalid")[0][2]


def test_methods_of_later_adapters_are_said_to_be_out() -> None:
    out = text("adr-006").partition("Later versions of the adapter")[2]
    for method in ("vlm_infer", "text_infer", "llm_infer", "load_llm", "unload_llm", "unload_vlm", "text_prompt_fit"):
        assert f"`{method}`" in out
    assert "`llm_prompt_fit`" in out


@pytest.mark.parametrize("chapter", [*CHAPTERS, "../README"])
def test_links_lead_somewhere(chapter: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(chapter)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (DOCS / f"{chapter}.md").parent / name if name else DOCS / f"{chapter}.md"
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in sections(file.relative_to(DOCS).stem), target
