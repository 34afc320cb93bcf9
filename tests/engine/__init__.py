"""Tests of the engine worker."""
