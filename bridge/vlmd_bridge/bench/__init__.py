"""`vlmd bench`: how fast a model describes frames on this machine, and what would make it faster."""
