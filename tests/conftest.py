"""Fixtures shared by the suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

from tests.support.daemon import Daemon

# The time of one example says more about the machine's other work than about the code.
settings.register_profile("vlmd", deadline=None)
settings.load_profile("vlmd")

StartDaemon = Callable[..., Daemon]


@pytest.fixture
def start_daemon() -> Iterator[StartDaemon]:
    """Start daemons that end with the test."""
    started: list[Daemon] = []

    def start(*options: str, **arguments: object) -> Daemon:
        daemon = Daemon(*options, **arguments)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.close()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """A daemon with the fake model, ready."""
    return start_daemon().wait_ready()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of 48 small pictures, no two alike."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    paths = []
    for i in range(48):
        path = folder / f"{i:02d}.png"
        Image.new("RGB", (64 + i, 64), (5 * i, 255 - 5 * i, 128)).save(path)
        paths.append(str(path))
    return paths
