"""Fixtures of the ADR-006 tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.adr006.bridge import Bridge
from tests.adr006.old_client import NODE, OldClient

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


StartClient = Callable[..., OldClient]


@pytest.fixture
def start_client() -> Iterator[StartClient]:
    """Start host apps with the old adapter, which end with the test."""
    if NODE is None:
        pytest.skip("node is not installed (CI installs it)")
    started: list[OldClient] = []

    def start(**arguments: object) -> OldClient:
        client = OldClient(**arguments)  # type: ignore[arg-type]
        started.append(client)
        return client

    yield start
    for client in started:
        client.close()
