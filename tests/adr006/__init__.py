"""ADR-006, complete: its listener, its bridge, its error table, its checklist and its own client."""
