"""The engine worker: one process, one model.

``python -m vlmd_bridge.engine.process --link-fd N --arena-fd M``. The main thread does all work of the backend (MLX
allows one thread only); one plain thread reads the link.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from vlmd_bridge import faults
from vlmd_bridge.engine.backend import Backend, Event, LoadError, open_backend
from vlmd_bridge.engine.fault_points import FaultPoints
from vlmd_bridge.engine.inbox import Inbox
from vlmd_bridge.workers.arena import map_arena
from vlmd_bridge.workers.blocking_link import BlockingLink
from vlmd_bridge.workers.messages import (
    STACKS_SIGNAL,
    Beat,
    Close,
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    EngineReady,
    Failed,
    LoadFailed,
    Loading,
    Remove,
    Removed,
    Start,
    ToEngine,
)
from vlmd_bridge.workers.orphan import end_with_daemon

_BEAT_EVERY_S = 1.0

# Frames of one job come in bursts with gaps of a picture's decoding (some 20 ms): long enough to span them, short
# enough that memory wired for the model is soon the system's again.
_IDLE_AFTER_S = 0.5


class EngineWorker:
    """Steps a backend and keeps the daemon informed."""

    def __init__(self, backend: Backend, link: BlockingLink[ToEngine], inbox: Inbox, points: FaultPoints) -> None:
        self._backend = backend
        self._link = link
        self._inbox = inbox
        self._points = points
        self._active: set[int] = set()
        self._steps = 0
        self._beat_at_s = 0.0

    def run(self) -> None:
        """Serve until the daemon closes the link or says so."""
        while self._take_messages():
            self._emit(self._step())
            self._beat()

    def _take_messages(self) -> bool:
        """Handle what has arrived, waiting while there is nothing to step; False at the end."""
        while True:
            message = self._next_message()
            if isinstance(message, Close):
                return False
            if message is None:
                return True
            self._handle(message)

    def _next_message(self) -> ToEngine | None:
        if self._active:
            return self._inbox.get_nowait()
        message = self._inbox.get(_IDLE_AFTER_S)
        if message is None:
            self._backend.idle()
            message = self._inbox.get()
        return message

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Start):
            self._active.add(message.seq)
            self._start(message)
        elif isinstance(message, Remove) and message.seq in self._active:
            # Otherwise its Finished or Failed is on its way and stands for the acknowledgement.
            self._backend.remove(message.seq)
            self._active.discard(message.seq)
            self._link.send(Removed(seq=message.seq))
        elif isinstance(message, Count):
            self._link.send(self._count(message))

    def _start(self, start: Start) -> None:
        try:
            self._points.taken(start)
            self._backend.start(start)
        except Exception as error:  # noqa: BLE001 - boundary: nothing of it runs yet, so it costs this sequence only
            traceback.print_exc()
            self._emit([Failed(seq=start.seq, code="worker_error", error=_describe(error))])

    def _count(self, count: Count) -> Counted | Failed:
        try:
            return self._backend.count(count)
        except Exception as error:  # noqa: BLE001 - boundary: whatever a template does costs this answer only
            traceback.print_exc()
            return Failed(seq=count.seq, code="worker_error", error=_describe(error))

    def _step(self) -> Sequence[Event]:
        self._steps += 1
        try:
            self._points.step(len(self._active))
            return self._backend.step()
        except Exception as error:  # noqa: BLE001 - boundary: a step that raised costs the sequences that had begun
            traceback.print_exc()
            return self._reset(_describe(error))

    def _reset(self, error: str) -> Sequence[Failed]:
        """Drop every sequence that has begun. One that waits goes on waiting, unless there is no other to blame."""
        begun = self._active - self._backend.reset()
        if not begun:
            begun = set(self._active)
            for seq in begun:
                self._backend.remove(seq)
        together = len(begun) > 1
        return [Failed(seq=seq, code="worker_error", error=error, together=together) for seq in sorted(begun)]

    def _emit(self, events: Sequence[Event]) -> None:
        if events:
            self._active.difference_update(event.seq for event in events if not isinstance(event, Delta))
            self._link.send(*events)  # one write for all of a step

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s - self._beat_at_s < _BEAT_EVERY_S:
            return
        self._beat_at_s = now_s
        usage = self._backend.usage()
        self._link.send(
            Beat(
                steps=self._steps,
                active=len(self._active),
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                active_memory_bytes=usage.active_memory_bytes,
                cache_memory_bytes=usage.cache_memory_bytes,
            )
        )


def run_worker(link_fd: int, arena_fd: int) -> int:
    """Run an engine worker on inherited descriptors and return its exit status."""
    for fd in (link_fd, arena_fd):
        os.set_inheritable(fd, False)
    link: BlockingLink[ToEngine] = BlockingLink(link_fd, ToEngine)
    end_with_daemon(link.socket)
    arena = map_arena(arena_fd, writable=False)
    points = FaultPoints(arena, link)
    inbox = Inbox(link, points)
    configure = inbox.get()
    if not isinstance(configure, ConfigureEngine):
        return 0  # closed before it began
    inbox.set_loading(True)
    try:
        points.loads()
        backend = open_backend(
            configure, arena, lambda stage, fraction: link.send(Loading(stage=stage, fraction=fraction))
        )
    except LoadError as error:
        link.send(LoadFailed(code=error.code, error=str(error)))
        return 1
    except Exception as error:  # noqa: BLE001 - boundary: whatever a model folder provokes is a failed load
        traceback.print_exc()
        link.send(LoadFailed(code="model_load_failed", error=f"{configure.path}: {_describe(error)}"))
        return 1
    finally:
        inbox.set_loading(False)
    link.send(EngineReady(pid=os.getpid(), info=backend.info))
    points.ready()
    try:
        EngineWorker(backend, link, inbox, points).run()
    finally:
        points.closes()
        backend.close()
    return 0


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def main() -> None:
    """Parse the descriptors and run."""
    # Libraries print; fd 1 may be the daemon's own standard output.
    os.dup2(2, 1)
    # Ctrl-C in a terminal reaches the whole group: the daemon drains first and then closes the link. SIGTERM keeps
    # its default action, for whoever must end this process without the daemon.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where it stood, in its last lines: on a crash, and when the daemon finds that it hangs. Needs no interpreter lock.
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL)
    parser = argparse.ArgumentParser(prog="python -m vlmd_bridge.engine.process", description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True, help="socketpair to the daemon")
    parser.add_argument("--arena-fd", type=int, required=True, help="file in which the pictures stand")
    parser.add_argument("--fault", action="append", default=[], help="a fault point and the pipe with its times")
    arguments = parser.parse_args()
    faults.install(faults.Plan.inherit(arguments.fault))
    status = run_worker(arguments.link_fd, arguments.arena_fd)
    sys.stderr.flush()
    sys.exit(status)


if __name__ == "__main__":
    main()
