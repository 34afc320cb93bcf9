"""Tests of vlmd."""
