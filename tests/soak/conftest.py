"""Prints the figures after the runs, as those of `tests/faults`."""

from __future__ import annotations

from tests.faults.conftest import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]
