"""One connection to a daemon: the session over a non-blocking socket, and the boxes its events go to."""

from __future__ import annotations

import errno
import socket
import threading
from collections import deque
from pathlib import Path

from vlmd._runtime import Runtime
from vlmd._session import Batched, Broken, ClientSession, Event, News, Piece
from vlmd_protocol.errors import ConnectError, ConnectionLostError, DeadlineError, VlmdError
from vlmd_protocol.messages import HelloResult, Wire

# One read of the socket; larger than its buffer on either platform brings nothing.
_READ_BYTES = 256 * 1024

# A daemon whose accept queue is full (EAGAIN on Linux) is asked again after so long.
_QUEUE_FULL_WAIT_S = 0.02


class Box:
    """Events for one caller, in order."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._events: deque[Event] = deque()
        self._signal = runtime.signal()

    def put(self, event: Event) -> None:
        """Add an event and wake the caller."""
        self._events.append(event)
        self._signal.set()

    async def next(self, until_s: float | None) -> Event | None:
        """Return the next event, or None when the clock reaches `until_s`."""
        while (event := self.poll()) is None:
            if until_s is not None and self._runtime.now_s() >= until_s:
                return None
            self._signal.clear()
            if not self._events:  # else it came between the two lines, from the reader's thread
                await self._signal.wait(until_s)
        return event

    def poll(self) -> Event | None:
        """Return the next event if there is one."""
        return self._events.popleft() if self._events else None


class Link:
    """A connection. It is read in the background until it is lost.

    Attributes:
        lost: why, once it is.
        hello: what the daemon said of itself.
        draining: the daemon announced its end, so that a loss is no crash.
    """

    def __init__(self, runtime: Runtime, sock: socket.socket) -> None:
        self.lost: VlmdError | None = None
        self.hello: HelloResult | None = None
        self.draining = False
        self._runtime = runtime
        self._socket = sock
        self._session = ClientSession()
        self._boxes: dict[int, Box] = {}
        self._unsent = bytearray()
        # Held for a few instructions and never across an await, so that it serves the async client as well. Reentrant,
        # for a forgotten iterator cancels from within a garbage collection, which may interrupt its holder.
        self._lock = threading.RLock()

    @classmethod
    async def open(cls, runtime: Runtime, path: Path, until_s: float) -> Link:
        """Connect and start to read.

        Raises:
            ConnectError: nobody listens at `path`.
            DeadlineError: somebody does, but takes no connections.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            while (code := sock.connect_ex(str(path))) == errno.EAGAIN:
                if runtime.now_s() >= until_s:
                    raise DeadlineError(f"The daemon at {path} takes no connections.", phase="connect")
                await runtime.sleep(_QUEUE_FULL_WAIT_S)
            if code:
                raise ConnectError(f"Nobody answers at {path}: {errno.errorcode.get(code, code)}.")
        except BaseException:
            sock.close()
            raise
        link = cls(runtime, sock)
        runtime.background(link._read, "reader")
        return link

    def post(self, method: str, params: Wire, box: Box) -> int:
        """Queue a request whose events go to `box`, and return its id. `flush` sends what does not go out at once.

        Raises:
            InvalidRequestError: it is too large for any daemon.
            VlmdError: the connection is lost; it is `lost`.
        """
        with self._lock:
            if self.lost is not None:
                raise self.lost
            request_id, line = self._session.request(method, params)
            self._boxes[request_id] = box
            self._unsent += line
            self._send()
            return request_id

    def cancel(self, request_id: int) -> None:
        """Leave a request: tell the daemon, and drop what still comes for it. Neither blocks nor raises."""
        with self._lock:
            self._boxes.pop(request_id, None)
            if self.lost is None:
                self._unsent += self._session.cancel(request_id)
                self._send()

    async def flush(self, until_s: float) -> None:
        """Send what is queued; what is left at `until_s` stays queued."""
        while True:
            with self._lock:
                if self.lost is not None or not self._unsent:
                    return
                fd = self._socket.fileno()
            if not await self._runtime.writable(fd, until_s):
                return
            with self._lock:
                self._send()

    def close(self, reason: VlmdError) -> None:
        """End the connection; who still waits gets `reason`."""
        with self._lock:
            if self.lost is None:
                self._lose(reason)

    def forsake(self) -> None:
        """In a forked child: let go of the descriptor. `shutdown` would end the parent's connection."""
        self._socket.close()

    def _send(self) -> None:
        # A dead peer is noticed by the reader, which tells everyone.
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except OSError:
            return

    def _lose(self, reason: VlmdError) -> None:
        self.lost = reason
        for box in set(self._boxes.values()):
            box.put(Broken(reason))
        self._boxes.clear()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader, which closes the descriptor
        except OSError:
            return

    async def _read(self) -> None:
        try:
            while self.lost is None:
                await self._runtime.readable(self._socket.fileno())
                self._receive()
        finally:
            with self._lock:
                if self.lost is None:
                    self._lose(ConnectionLostError("The client stopped reading."))
                self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            data, why = b"", f": {error.strerror}"
        else:
            why = "."
        with self._lock:
            if self.lost is not None:
                return
            if not data:
                self._lose(ConnectionLostError(f"The daemon closed the connection{why}"))
                return
            for event in self._session.receive(data):
                self._dispatch(event)

    def _dispatch(self, event: Event) -> None:
        if self.lost is not None:
            return
        match event:
            case Broken(error):
                self._lose(error)
            case News():
                self.draining = self.draining or event.event == "draining"
                for box in set(self._boxes.values()):
                    box.put(event)
            case _:
                more = isinstance(event, Piece) or (isinstance(event, Batched) and not event.done)
                asker = self._boxes.get(event.request_id) if more else self._boxes.pop(event.request_id, None)
                if asker is not None:
                    asker.put(event)
