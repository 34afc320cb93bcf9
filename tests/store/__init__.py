"""The result store: its file, its keys, and what may go wrong with it."""
