"""What the documents print in blocks `sh`, `python` and `js` works as printed, with the fake model for the demo's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.docs.blocks import CHAPTERS, RUN, SHOWN, blocks
from vlmd_bridge import config

# What runs is the document's text but for the model: the demo's is another suite's matter.
_REPLACED = (("--model demo", "--model fake"), ('Client("demo"', 'Client("fake"'), ("'demo'", "'fake'"))

_PROGRAMS = {"sh": ["bash", "-euc"], "python": [sys.executable, "-Pc"], "js": ["node", "--input-type=module", "-e"]}

_RUN = [
    pytest.param(chapter, number, id=f"{chapter}-{number}-{language}")
    for chapter in CHAPTERS
    for number, (language, _) in enumerate(blocks(chapter))
    if language in RUN
]


@pytest.fixture
def user(pictures: list[str]) -> Iterator[Command]:
    """A user in a folder with pictures, with `vlmd` on the PATH."""
    user = Command()
    programs = user.folder / "bin"
    programs.mkdir()
    (programs / "vlmd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m vlmd "$@"\n')
    (programs / "vlmd").chmod(0o755)
    user.environment["PATH"] = f"{programs}:{user.environment['PATH']}"
    # Daemons of clients' own are found by `vlmd` being importable here.
    user.environment["VLMD_PYTHON"] = sys.executable
    recording = user.folder / "recording"
    recording.mkdir()
    for path in pictures[:6]:
        shutil.copy(path, recording)
    for name, path in zip(("a.png", "b.png"), pictures, strict=False):
        shutil.copy(path, user.folder / name)
    yield user
    user.close()


@pytest.mark.parametrize(("chapter", "number"), _RUN)
def test_a_block_runs_as_printed(user: Command, chapter: str, number: int) -> None:
    language, script = blocks(chapter)[number]
    program = _PROGRAMS[language]
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed (CI installs it)")
    for printed, run in _REPLACED:
        script = script.replace(printed, run)
    environment = dict(user.environment)
    if language != "sh":
        del environment["VLMD_SOCKET"]  # these start daemons of their own
    done = subprocess.run(
        [*program, script], cwd=user.folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout


def test_every_block_is_run_or_meant_to_be_shown() -> None:
    assert {language for chapter in CHAPTERS for language, _ in blocks(chapter)} <= {*RUN, *SHOWN}


def test_the_quick_starts_commands_describe_what_they_name(user: Command) -> None:
    [script] = [content for language, content in blocks("quick-start") if language == "sh"]
    folder, pair, *_ = (line.replace("--model demo", "--model fake").split()[1:] for line in script.splitlines())
    assert user.run(*folder).stdout.count("Picture ") == 6
    assert [Path(line["imagePath"]).name for line in user.lines(*pair)] == ["a.png", "b.png"]


def test_lines_that_are_shown_are_json_and_toml(tmp_path: Path) -> None:
    for chapter in CHAPTERS:
        for language, content in blocks(chapter):
            if language == "json":
                json.loads(content)
            if language == "toml":
                tomllib.loads(content)
                file = tmp_path / "config.toml"
                file.write_text(content)
                found = config.load(environ={}, file=file)
                assert not found.warnings
                assert found.settings.batch_size == 8


def test_vlmd_config_is_a_configuration_file(user: Command) -> None:
    file = user.folder / "copy.toml"
    file.write_text(user.run("config").stdout)
    [before] = user.lines("config", "--json")
    user.environment["VLMD_CONFIG"] = str(file)
    [after] = user.lines("config", "--json")
    assert after["fingerprint"] == before["fingerprint"]
    assert not after["warnings"]
    values = [{name: key["value"] for name, key in found["settings"].items()} for found in (before, after)]
    assert values[0] == values[1]
