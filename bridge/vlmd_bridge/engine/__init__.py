"""Engine workers: one process, one model."""
