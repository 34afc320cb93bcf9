"""The start-up lines of a daemon that this client spawned, sans IO."""

from __future__ import annotations

import msgspec

from vlmd_protocol.codec import FrameTooLarge, LineDecoder
from vlmd_protocol.errors import StartError

# A start-up line is a short object; what is longer is no start-up line.
_MAX_LINE_BYTES = 64 * 1024


class StartupLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``--ready-fd``. A status that a newer daemon has is a sign of life, like ``loading``."""

    status: str
    stage: str | None = None
    fraction: float | None = None
    socket: str | None = None
    pid: int | None = None
    model: str | None = None
    error: str = ""
    code: str = "start_failed"


class Startup:
    """How far a start has come.

    Attributes:
        bound: the socket answers.
        running: another daemon holds the socket.
        fatal: the daemon's own reason why it could not start.
        over: no further line comes: a terminal one was read, or the descriptor is closed.
        lines: how many came; grows with progress.
    """

    def __init__(self) -> None:
        self.bound = False
        self.running = False
        self.fatal: StartError | None = None
        self.over = False
        self.lines = 0
        self._decoder = LineDecoder(_MAX_LINE_BYTES)

    def news(self) -> tuple[int, bool]:
        """Return a value that is another whenever something came."""
        return self.lines, self.over

    def receive(self, data: bytes) -> list[StartupLine]:
        """Take bytes, empty ones for the end; return the lines they complete."""
        if not data:
            self.over = True
            return []
        lines: list[StartupLine] = []
        try:
            for raw in self._decoder.feed(data):
                line = msgspec.json.decode(raw, type=StartupLine)
                self._note(line)
                lines.append(line)
        except (FrameTooLarge, msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self.fatal = StartError(f"The command wrote what no daemon writes when it starts: {error}")
            self.over = True
        return lines

    def _note(self, line: StartupLine) -> None:
        self.lines += 1
        match line.status:
            case "bound":
                self.bound = True
            case "ready":
                self.bound = self.over = True
            case "running":
                self.running = self.over = True
            case "fatal":
                self.fatal = StartError(line.error or "The daemon gave no reason.", code=line.code)
                self.over = True
