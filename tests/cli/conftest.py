"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import Command


@pytest.fixture
def vlmd() -> Iterator[Command]:
    """`vlmd` in a private world; a shared daemon that the test made it start is stopped."""
    command = Command()
    try:
        yield command
    finally:
        command.close()


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve small pictures, no two alike, in natural order."""
    folder: Path = tmp_path_factory.mktemp("frames")
    paths = [folder / f"frame-{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64 + number, 64), (20 * number, 100, 50)).save(path)
    return [str(path) for path in paths]
