"""The client's frames in the form they had on the wire."""

from __future__ import annotations

from vlmd import Frame
from vlmd_protocol.messages import FrameResult


def to_result(frame: Frame) -> FrameResult:
    """Return the result line's object of `frame`: what `--json` prints and `--output` keeps."""
    return FrameResult(
        index=frame.index,
        timestamp=frame.timestamp,
        image_path=frame.image_path,
        description=frame.description,
        activity=frame.activity,
        apps=frame.apps,
        topics=frame.topics,
        raw_response=frame.raw_response,
        record=frame.record,
        error=frame.error,
        code=frame.code,
        id=frame.id,
        duplicate_of=frame.duplicate_of,
        cached=frame.cached,
    )
