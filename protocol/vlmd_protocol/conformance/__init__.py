"""Plays the dialogue vectors against any server: ``python -m vlmd_protocol.conformance --socket PATH``.

Plain sockets and msgspec, so that it runs where the protocol is installed and nothing else.
"""

from vlmd_protocol.conformance.player import CaseFailed, Player
from vlmd_protocol.conformance.run import Outcome, run

__all__ = ["CaseFailed", "Outcome", "Player", "run"]
