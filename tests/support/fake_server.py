"""The scripted peer that ships with the protocol, under the name that the suites use."""

from vlmd_protocol.fake_server import (
    LIMITS,
    USAGE,
    Conversation,
    Dialogue,
    FakeServer,
    Message,
    batch_lines,
    frame_result,
    generate_lines,
    hello_result,
    hello_then,
    obedient,
    status_result,
)

__all__ = [
    "LIMITS",
    "USAGE",
    "Conversation",
    "Dialogue",
    "FakeServer",
    "Message",
    "batch_lines",
    "frame_result",
    "generate_lines",
    "hello_result",
    "hello_then",
    "obedient",
    "status_result",
]
