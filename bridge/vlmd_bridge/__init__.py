"""The vlmd daemon, its workers and its command line."""

__version__ = "0.1.0"
