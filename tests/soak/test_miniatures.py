"""The long runs at a size that CI has time for: the same code, checks and kinds of fault."""

from __future__ import annotations

import pytest

from tests.faults.figures import figure
from tests.soak import mixed_load, random_kills, recording

# Frames that take long enough to be killed at.
_SLOW = "fake:step_ms=15,tokens=24,width=4"


@pytest.mark.timeout(180)
def test_random_kills() -> None:
    figures, problems = random_kills.run(60, model=_SLOW, every_s=(0.8, 2.0))
    figure("soak kills, small", **figures)
    assert problems == []


@pytest.mark.timeout(180)
def test_recording() -> None:
    figures, problems = recording.run(240, model="fake:step_ms=2", half_hour=80)
    figure("soak recording, small", **figures)
    assert problems == []


@pytest.mark.model
@pytest.mark.timeout(300)
def test_mixed_load() -> None:
    outcome = mixed_load.run(0.4, every_s=4.0, frames=12)
    figure("soak mixed load, small", **outcome.figures)
    assert outcome.problems == []
