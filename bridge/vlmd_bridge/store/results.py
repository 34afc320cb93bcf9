"""The store as the event loop sees it: questions that are answered soon or given up, and values that are written."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import anyio

from vlmd_bridge.store.bounds import Bounds
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.store.keeper import Keeper
from vlmd_protocol.messages import CacheResult

log = logging.getLogger("vlmd.store")

# A lookup takes 0.1 ms. One that takes so long is a disk that sleeps, a lock or a model that is hashed: a miss, then.
_PATIENCE_S: Final = 0.3

# Written together: one transaction costs as much as ten rows.
_MAX_BATCH: Final = 256

# Behind a disk that hangs no more than this is kept for it: some megabytes.
_MAX_QUEUED: Final = 4096

# At the end, what is queued is written; a disk that hangs is not waited for.
_CLOSE_S: Final = 2.0

_IDLE_S: Final = 5.0

Answer: TypeAlias = Callable[[bytes | None], None]


@dataclass(frozen=True, slots=True)
class _Look:
    number: int
    model: ModelIdentity
    request: bytes


@dataclass(frozen=True, slots=True)
class _Keep:
    model: ModelIdentity
    request: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class _Ask:
    number: int
    clear: bool


_Work: TypeAlias = _Look | _Keep | _Ask | None


class ResultStore:
    """Asked from the event loop, answered from a thread of its own, which alone touches the file."""

    def __init__(self, path: Path, bounds: Bounds, *, enabled: bool) -> None:
        """Prepare; no file is opened before a job needs it.

        Args:
            path: of the file.
            bounds: how much is kept.
            enabled: whether jobs use it that say nothing about it.
        """
        self.enabled = enabled
        self.hits = 0
        self.misses = 0
        self._path = path
        self._bounds = bounds
        self._keeper = Keeper(path, bounds)
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._answers: deque[tuple[int, bytes | CacheResult | None]] = deque()
        self._lookups: dict[int, tuple[float, Answer]] = {}
        self._asked: dict[int, Callable[[CacheResult], None]] = {}
        self._next = 0
        self._behind = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._new_lookup = anyio.Event()

    # --- what jobs and handlers ask ---------------------------------------------------------------------------

    def look_up(self, model: ModelIdentity, request: bytes, answer: Answer) -> None:
        """Have `answer` called with what is kept for `request`, or None; always and once, perhaps before this returns.

        While the thread does not keep up nothing is looked up.
        """
        if self._behind:
            self.misses += 1
            answer(None)
            return
        self._next += 1
        self._lookups[self._next] = (anyio.current_time() + _PATIENCE_S, answer)
        self._put(_Look(self._next, model, request))
        self._new_lookup.set()

    def keep(self, model: ModelIdentity, request: bytes, value: bytes) -> None:
        """Have `value` written soon; dropped where the thread is far behind."""
        if self._work.qsize() < _MAX_QUEUED:
            self._put(_Keep(model, request, value))

    def info(self, answer: Callable[[CacheResult], None], *, clear: bool = False) -> None:
        """Have `answer` called with what the store holds; with `clear`, after everything in it was removed."""
        self._next += 1
        self._asked[self._next] = answer
        self._put(_Ask(self._next, clear))

    def status(self) -> CacheResult:
        """Return what is known without asking the thread."""
        keeper = self._keeper
        return CacheResult(
            state=keeper.state,
            path=str(self._path),
            enabled=self.enabled,
            max_bytes=self._bounds.max_bytes,
            max_age_s=self._bounds.max_age_s,
            hits=self.hits,
            misses=self.misses,
            stored=keeper.stored,
            warning=keeper.warning,
        )

    async def run(self) -> None:
        """Pass on answers and give up what takes too long, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_lookups)
            while True:
                await anyio.wait_readable(self._wake_read)
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._pass_on()

    def close(self) -> None:
        """Let the thread write what is queued and close the file. Blocks, for `_CLOSE_S` at most."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join(_CLOSE_S)
        for end in (self._wake_read, self._wake_write):
            end.close()

    # --- the loop's side --------------------------------------------------------------------------------------

    def _put(self, work: _Work) -> None:
        if self._thread is None:
            # A daemon thread: one that hangs in the file system holds up nobody's exit.
            self._thread = threading.Thread(target=self._serve, name="vlmd-store", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _pass_on(self) -> None:
        while self._answers:
            number, found = self._answers.popleft()
            if isinstance(found, CacheResult):
                self._asked.pop(number)(found)
                continue
            self._behind = False
            if (waiting := self._lookups.pop(number, None)) is not None:
                self._count(found)
                waiting[1](found)

    def _count(self, found: bytes | None) -> None:
        if found is None:
            self.misses += 1
        else:
            self.hits += 1

    async def _watch_lookups(self) -> None:
        while True:
            if not self._lookups:
                self._new_lookup = anyio.Event()
                await self._new_lookup.wait()
            number, (until_s, answer) = next(iter(self._lookups.items()))
            if anyio.current_time() < until_s:
                await anyio.sleep_until(until_s)
                continue
            del self._lookups[number]
            if not self._behind:
                log.warning("the result store %s does not keep up; jobs run without it meanwhile", self._path)
            self._behind = True
            self._count(None)
            answer(None)

    # --- the thread's side ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                work = [self._work.get(timeout=_IDLE_S)]
            except queue.Empty:
                self._keeper.flush()
                continue
            while len(work) < _MAX_BATCH and not self._work.empty():
                work.append(self._work.get())
            for item in work:
                if isinstance(item, _Look):
                    # Not behind the writes of the batch: a frame waits for it.
                    self._tell(item.number, self._keeper.get(item.model, item.request))
            self._keeper.put([(item.model, item.request, item.value) for item in work if isinstance(item, _Keep)])
            for item in work:
                if isinstance(item, _Ask):
                    self._tell(item.number, self._look_around(clear=item.clear))
            if None in work:
                self._keeper.close()
                return

    def _look_around(self, *, clear: bool) -> CacheResult:
        removed = self._keeper.clear() if clear else None
        entries = self._keeper.count()
        known = self.status()
        return CacheResult(
            **{name: getattr(known, name) for name in known.__struct_fields__ if name not in _MEASURED},
            entries=entries,
            bytes=self._keeper.bytes_on_disk,
            removed=removed,
        )

    def _tell(self, number: int, found: bytes | CacheResult | None) -> None:
        self._answers.append((number, found))
        with contextlib.suppress(OSError):  # full: a wake-up is on its way already; closed: nobody listens any more
            self._wake_write.send(b"\0")


_MEASURED: Final = ("entries", "bytes", "removed")
