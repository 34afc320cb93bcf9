"""The promises of docs/reliability.md: one file for each, whose docstring states it and whose run prints its figure."""
