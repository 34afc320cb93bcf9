"""The result store: what was inferred once is not inferred again. A SQLite file, off the event loop."""
