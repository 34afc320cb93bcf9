"""The vlmd protocol: messages, codec, errors, limits and connection state. No sockets, no clock."""

from vlmd_protocol.limits import PROTOCOL_VERSION

__all__ = ["PROTOCOL_VERSION"]
