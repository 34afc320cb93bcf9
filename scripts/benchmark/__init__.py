"""One run, one table, one plot: vlmd beside other ways to describe frames with one model. `scripts/bench` runs it."""
