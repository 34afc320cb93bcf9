"""A server that plays a script, to test any client against: ``python -m vlmd_protocol.fake_server --socket PATH``.

In Python a dialogue may be a function too::

    with FakeServer(path, hello_then(lambda talk: talk.stall())) as server:
        ...

It needs msgspec alone. A line that no client may send ends its connection and is told on standard error.
"""

from vlmd_protocol.fake_server.answers import (
    LIMITS,
    USAGE,
    Message,
    batch_lines,
    frame_result,
    generate_lines,
    hello_result,
    status_result,
)
from vlmd_protocol.fake_server.obedient import hello_then, obedient
from vlmd_protocol.fake_server.script import ScriptError, load_script, scripted
from vlmd_protocol.fake_server.server import Conversation, Dialogue, FakeServer

__all__ = [
    "LIMITS",
    "USAGE",
    "Conversation",
    "Dialogue",
    "FakeServer",
    "Message",
    "ScriptError",
    "batch_lines",
    "frame_result",
    "generate_lines",
    "hello_result",
    "hello_then",
    "load_script",
    "obedient",
    "scripted",
    "status_result",
]
