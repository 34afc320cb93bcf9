"""One request about one prompt: asked, and asked once more where its daemon is lost before it said anything."""

from __future__ import annotations

from vlmd._core import ClientCore
from vlmd._link import Box, Link
from vlmd._patience import Patience, left_error
from vlmd._session import Answered, Broken, Event, Generated, News, Piece, Refused
from vlmd._timeouts import Timeouts
from vlmd_protocol.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ProtocolError,
    StartError,
)
from vlmd_protocol.messages import Wire

# A prompt that ends two daemons is left alone.
_MAX_LOSSES = 1


class Ask:
    """See above. A caller that is slow to take pieces holds up nobody: at most `max_tokens` of them wait here."""

    def __init__(self, core: ClientCore, method: str, params: Wire, timeouts: Timeouts, *, resume: bool) -> None:
        self._core = core
        self._method = method
        self._params = params
        self._patience = Patience(
            core, timeouts, between_s=timeouts.between_deltas_s, between="between_deltas", resume=resume
        )
        self._box = Box(core.runtime)
        self._link: Link | None = None
        self._request_id = 0
        self._heard = False
        self._left = False
        self._losses = 0

    async def next(self) -> Piece | Generated | Answered:
        """Return what the daemon says next. The last thing it says is no `Piece`.

        Raises:
            VlmdError: it cannot go on; call `leave`.
        """
        self._patience.begin()
        while True:
            try:
                match await self._listen():
                    case Piece() | Generated() | Answered() as event:
                        self._heard = True
                        self._patience.note_piece()
                        return event
                    case News() as news:
                        if news.is_load_progress:
                            self._patience.note_loading()
                    case Refused(error=error):
                        self._link = None
                        await self._patience.wait_for_room(error, self._patience.deadline()[0])
                    case Broken(error):
                        self._losses += 1
                        raise await self._core.explain(error)
                    case _:
                        raise self.violated(ProtocolError(f"The daemon answered {self._method} with frames."))
            except (ConnectionLostError, ConnectError, StartError) as error:
                # Another run may say something else: what was heard cannot be continued.
                if self._heard or self._losses > _MAX_LOSSES:
                    raise
                self._link = None
                self._box = Box(self._core.runtime)
                await self._patience.wait_for_restart(error)

    def leave(self) -> None:
        """Cancel it on the daemon, unless it has ended. Neither blocks nor raises.

        Another thread or task that waits in `next` gets `CancelledError_`: a button that stops it is on another one.
        """
        self._left = True
        link = self._link  # which who waits on another thread may forget meanwhile
        if link is not None and not self._core.forked:  # in a child, a lock may be held by nobody
            link.cancel(self._request_id)
            self._box.put(Refused(self._request_id, left_error()))

    def violated(self, error: ProtocolError) -> ProtocolError:
        """End the connection: a peer that mixes up answers is not talked to any further."""
        if self._link is not None:
            self._link.close(error)
        return error

    async def _listen(self) -> Event:
        if (event := self._box.poll()) is not None:
            return event
        link = self._link
        if link is None:
            self._check_left()  # it may have been left while it slept, before another try
            link = await self._patience.link()
            self._request_id = link.post(self._method, self._params, self._box)
            self._link = link
            self._patience.note_asked()
            if self._left:  # while the connection was made
                link.cancel(self._request_id)
                raise left_error()
        until_s, phase = self._patience.deadline()
        await link.flush(until_s)
        if (event := await self._box.next(until_s)) is None:
            raise DeadlineError(f"Nothing came in time ({phase}); the request was cancelled.", phase=phase)
        return event

    def _check_left(self) -> None:
        if self._left:
            raise left_error()
