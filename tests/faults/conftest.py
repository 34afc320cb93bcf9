"""Prints the figures after the tests, where pytest does not capture them."""

from __future__ import annotations

import pytest

from tests.faults.figures import printed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figure of each promise."""
    for line in printed():
        terminalreporter.write_line(line)
