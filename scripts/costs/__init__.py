"""A cost model of describing frames: fitted on a calibration, checked on others. `scripts/cost_model.py` runs it."""
