"""What an obedient daemon answers, as plain objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmd_protocol import limits

Message = dict[str, Any]

LIMITS: Message = {
    "maxFrameBytes": limits.MAX_FRAME_BYTES,
    "maxImages": limits.MAX_IMAGES,
    "maxBatchSize": limits.MAX_BATCH_SIZE,
    "maxTokens": limits.MAX_TOKENS,
    "maxInFlight": limits.MAX_IN_FLIGHT,
    "maxWaitingPlain": limits.MAX_WAITING_PLAIN,
    "maxSchemaBytes": limits.MAX_SCHEMA_BYTES,
}


def hello_result(**changes: Any) -> Message:
    """Return what a daemon says to `hello`."""
    result: Message = {
        "protocol": limits.PROTOCOL_VERSION,
        "version": "0.0.0",
        "pid": 1,
        "state": "ready",
        "capabilities": ["describe_images"],
        "limits": LIMITS,
        "fingerprint": "fake",
        "models": [{"name": "fake", "state": "ready"}],
    }
    return result | changes


def status_result(**changes: Any) -> Message:
    """Return what a daemon says to `status`."""
    result: Message = {
        "version": "0.0.0",
        "protocol": limits.PROTOCOL_VERSION,
        "pid": 1,
        "state": "ready",
        "uptimeS": 1.5,
        "socket": "",
        "logFile": None,
        "owned": False,
        "fingerprint": "fake",
        "connections": 1,
        "memoryBytes": 0,
        "models": [],
        "queue": {"jobs": 0, "queued": 0, "decoding": 0, "ready": 0, "running": 0},
        "imageProcesses": [],
        "framesDone": 0,
        "framesFailed": 0,
        "faults": [],
    }
    return result | changes


def frame_result(image: Message, at: int) -> Message:
    """Return the result of one frame, which tells which picture it is of."""
    echo = {"id": image["id"]} if "id" in image else {}
    return {
        "index": image.get("index", at),
        "timestamp": image.get("timestamp"),
        "imagePath": image["imagePath"],
        "description": f"shows {image['imagePath']}",
        "activity": "testing",
        "apps": ["pytest"],
        "topics": [],
        **echo,
    }


def batch_lines(request: Message) -> Iterator[Message]:
    """Yield the lines that answer a `describe_images`."""
    params = request["params"]
    images, size = params["images"], params.get("batchSize", 4)
    for number, start in enumerate(range(0, len(images), size), 1):
        results = [frame_result(image, start + at) for at, image in enumerate(images[start : start + size])]
        current = start + len(results)
        last = current == len(images)
        line: Message = {
            "id": request["id"],
            "batch": number,
            "results": results,
            "partial": not last,
            "progress": {"current": current, "total": len(images)},
        }
        yield line | ({"done": True} if last else {})


USAGE: Message = {
    "promptTokens": 7,
    "completionTokens": 5,
    "tokensPerS": 50.0,
    "timeToFirstTokenS": 0.1,
    "peakMemoryBytes": 1024,
}


def generate_lines(
    request: Message, text: str | None = None, *, reasoning: str = "", finish_reason: str = "stop", piece: int = 3
) -> Iterator[Message]:
    """Yield the lines that answer a `generate`: by default with an echo of its prompt, `piece` characters a line."""
    text = f"Echo: {request['params'].get('prompt')}" if text is None else text
    for at in range(0, len(reasoning), piece):
        yield {"id": request["id"], "reasoningDelta": reasoning[at : at + piece]}
    for at in range(0, len(text), piece):
        yield {"id": request["id"], "delta": text[at : at + piece]}
    thought = {"reasoning": reasoning} if reasoning else {}
    yield {"id": request["id"], "text": text, "finishReason": finish_reason, "usage": USAGE, **thought, "done": True}
