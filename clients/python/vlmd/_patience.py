"""How long one job waits: its deadlines, a busy daemon, and one that was lost."""

from __future__ import annotations

import math

from vlmd._core import ClientCore
from vlmd._link import Link
from vlmd._timeouts import Timeouts
from vlmd_protocol.errors import (
    BusyError,
    CancelledError_,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    StartError,
    VlmdError,
)

# An attached daemon is somebody else's to restart; it is looked for so often meanwhile.
_RECONNECT_S = 0.1


def left_error() -> CancelledError_:
    """Return the error of who waits for an answer that was left."""
    return CancelledError_("It was left before its end.", code="cancelled")


class Patience:
    """The clock of one job. `between_s` is its limit from one piece to the next, `between` that deadline's name."""

    def __init__(
        self, core: ClientCore, timeouts: Timeouts, *, between_s: float | None, between: str, resume: bool
    ) -> None:
        self._core = core
        self._runtime = core.runtime
        self._timeouts = timeouts
        self._between_s = between_s
        self._between = between
        self._resume = resume
        self._heard_s = 0.0
        self._heard_piece = False
        self._refused_by: Link | None = None
        self._total_until_s = math.inf
        self._reconnect_until_s: float | None = None

    def begin(self) -> None:
        """Begin to wait for the next piece: the caller's own time since the last one does not count."""
        self._heard_s = self._runtime.now_s()
        if self._total_until_s == math.inf and self._timeouts.total_s is not None:
            self._total_until_s = self._heard_s + self._timeouts.total_s

    def leave_out(self, seconds: float) -> None:
        """Do not count what the caller's iterable took, but in the whole job's time: it is no silence of a daemon."""
        self._heard_s += seconds

    def note_asked(self) -> None:
        """Note that a daemon was asked, the first or another one. To ask a busy one again begins no wait anew."""
        refused_by, self._refused_by = self._refused_by, None
        if refused_by is not None and refused_by is self._core.current_link():
            return
        self._heard_piece = False
        self._heard_s = self._runtime.now_s()

    def note_loading(self) -> None:
        """Note that the model is on its way."""
        self._heard_s = self._runtime.now_s()

    def note_piece(self) -> None:
        """Note that something of the answer came."""
        self._heard_s = self._runtime.now_s()
        self._heard_piece = True
        self._refused_by = None
        self._reconnect_until_s = None

    def deadline(self) -> tuple[float, str]:
        """Return when to stop waiting, and the name of that deadline.

        Raises:
            DeadlineError: the whole job's time is over.
        """
        limit_s = self._between_s if self._heard_piece else self._timeouts.first_byte_s
        until_s = float("inf") if limit_s is None else self._heard_s + limit_s
        phase = self._between if self._heard_piece else "first_byte"
        if self._total_until_s <= until_s:
            self._check_total()
            return self._total_until_s, "total"
        return until_s, phase

    async def link(self) -> Link:
        """Return the connection, made anew if there is none, as long as the whole job has time.

        Raises:
            DeadlineError: the whole job's time is over, or another deadline passed.
            VlmdError: as `ClientCore.link` says.
        """
        self._check_total()
        try:
            link = await self._core.link(self._total_until_s)
        except DeadlineError:
            self._check_total()
            raise
        self._check_total()
        return link

    async def wait_for_room(self, error: VlmdError, until_s: float) -> None:
        """Wait as long as a busy daemon says, if there is time.

        Raises:
            RequestError: any other refusal, or there is no time.
        """
        after_s = error.retry_after_s if isinstance(error, BusyError) else None
        if after_s is None or self._runtime.now_s() + after_s > until_s:
            raise error
        self._refused_by = self._core.current_link()
        await self._runtime.sleep(after_s)

    async def wait_for_restart(self, error: ConnectionLostError | ConnectError | StartError) -> None:
        """Wait a moment before the next connection.

        Raises:
            DeadlineError: the whole job's time is over.
            VlmdError: there is to be none: it never was there, or said why it cannot start.
        """
        if not (self._resume and self._core.was_connected) or (
            isinstance(error, StartError) and error.code != StartError("").code
        ):
            raise error
        now_s = self._runtime.now_s()
        self._check_total()
        if self._core.settings.ownership == "attached":
            if self._reconnect_until_s is None:
                self._reconnect_until_s = now_s + self._timeouts.connect_s
            if now_s >= self._reconnect_until_s:
                raise ConnectionLostError(f"The daemon went away and did not come back: {error}") from error
            delay_s = _RECONNECT_S
        else:
            self._core.log(f"{error} Going on with what is left.".splitlines()[0])
            delay_s = self._core.connector.delay_s()
        await self._runtime.sleep(min(delay_s, self._total_until_s - now_s))

    def _check_total(self) -> None:
        if self._runtime.now_s() >= self._total_until_s:
            raise DeadlineError("The job took too long; it was cancelled.", phase="total")
