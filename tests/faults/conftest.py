"""Gives the tests their time, and prints the figures after them, where pytest does not capture them."""

from __future__ import annotations

import pytest

from tests.faults.figures import printed, rounds

# A promise is put to the test many times in one test, which takes minutes on a busy machine, and an hour at most.
_TIMEOUT_S = rounds(push=600, long=5400)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the limit of each test of this folder."""
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figure of each promise."""
    for line in printed():
        terminalreporter.write_line(line)
