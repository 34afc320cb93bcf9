"""The daemon: event loop only, no model library."""
