"""Fixtures of the ADR-006 tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.adr006.bridge import Bridge

StartBridge = Callable[..., Bridge]


@pytest.fixture
def start_bridge() -> Iterator[StartBridge]:
    """Start bridges that end with the test."""
    started: list[Bridge] = []

    def start(**arguments: object) -> Bridge:
        bridge = Bridge(**arguments)  # type: ignore[arg-type]
        started.append(bridge)
        return bridge

    yield start
    for bridge in started:
        bridge.close()
