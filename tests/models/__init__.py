"""Tests of names and files of models."""
