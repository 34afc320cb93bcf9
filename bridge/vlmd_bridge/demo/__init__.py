"""The demonstration: a small trained model and the synthetic screens it describes."""

from __future__ import annotations

from pathlib import Path

from vlmd_bridge.demo.frame import Frame, Topic
from vlmd_bridge.demo.frames import KINDS, draw_frame, iter_recording, recording

# The checkpoint that `--model demo` opens.
MODEL_PATH = Path(__file__).parent / "model"

__all__ = ["KINDS", "MODEL_PATH", "Frame", "Topic", "draw_frame", "iter_recording", "recording"]
