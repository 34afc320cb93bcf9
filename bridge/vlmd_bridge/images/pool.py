"""The image processes, as the daemon holds them: pictures handed out, hangs and crashes survived."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import anyio.abc

from vlmd_bridge.workers.child import Child
from vlmd_bridge.workers.messages import (
    ConfigureImages,
    FromImages,
    ImageSpec,
    ImagesReady,
    PictureFailed,
    Prepare,
    Prepared,
)

log = logging.getLogger("vlmd.images")

# One picture is worked on, one waits in the process's socket: hides the round trip.
_DEPTH = 2

# A picture during which the process ended so often is given up.
_MAX_CRASHES = 2

# Between the end of a process that did no work and the start of the next.
_RESTART_DELAY_S = 0.5

_CLOSE_GRACE_S = 2.0


@dataclass(slots=True, eq=False)
class _Picture:
    request: Prepare
    crashes: int = 0


class ImagePool:
    """Hands pictures to processes, in order; every picture is answered once."""

    def __init__(
        self,
        config: ConfigureImages,
        *,
        arena_fd: int,
        count: int,
        timeout_s: float,
        on_prepared: Callable[[Prepared], None],
        on_failed: Callable[[int, str, str], None],
    ) -> None:
        self._queue: deque[_Picture] = deque()
        self._on_prepared = on_prepared
        self._on_failed = on_failed
        self._workers = [_Worker(self, config, arena_fd, timeout_s) for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    def prepare(self, seq: int, path: str, offset: int, spec: ImageSpec) -> None:
        """Queue a picture."""
        self._queue.append(_Picture(Prepare(seq=seq, path=path, offset=offset, spec=spec)))
        for worker in sorted(self._workers, key=lambda worker: worker.load):
            worker.feed()

    async def run(self) -> None:
        """Keep the processes running until cancelled."""
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(worker.run)

    async def close(self) -> None:
        """End the processes."""
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(worker.close)

    def next(self) -> _Picture | None:
        """Take the picture that has waited longest."""
        return self._queue.popleft() if self._queue else None

    def put_back(self, pictures: list[_Picture]) -> None:
        """Let pictures be next again, in their order."""
        self._queue.extendleft(reversed(pictures))

    def answered(self, message: Prepared | PictureFailed) -> None:
        """Pass on what a process said."""
        if isinstance(message, Prepared):
            self._on_prepared(message)
        else:
            self._on_failed(message.seq, message.code, message.error)

    def give_up(self, picture: _Picture, code: str, error: str) -> None:
        """Answer for a picture that no process answered for."""
        self._on_failed(picture.request.seq, code, error)


class _Worker:
    """One image process and its successors."""

    def __init__(self, pool: ImagePool, config: ConfigureImages, arena_fd: int, timeout_s: float) -> None:
        self._pool = pool
        self._config = config
        self._arena_fd = arena_fd
        self._timeout_s = timeout_s
        self._child: Child[FromImages] | None = None
        self._ready = False
        self._closing = False
        self._given: deque[_Picture] = deque()  # the first is the one being worked on
        self._head_since = 0.0
        self._busy = anyio.Event()
        self._timed_out = False

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def load(self) -> int:
        return len(self._given)

    def feed(self) -> None:
        """Hand over pictures, as far as the process takes them."""
        while self._ready and self._child is not None and len(self._given) < _DEPTH:
            picture = self._pool.next()
            if picture is None:
                return
            if not self._given:
                self._head_since = anyio.current_time()
            self._given.append(picture)
            self._child.send(picture.request)
            self._busy.set()

    async def run(self) -> None:
        while True:
            self._child = Child(
                "vlmd_bridge.images.process",
                arena_fd=self._arena_fd,
                incoming=FromImages,
                on_message=self._take,
            )
            self._timed_out = False
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, self._child)
                exit_ = await self._child.run(self._config)
                tasks.cancel_scope.cancel()
            was_ready, self._ready = self._ready, False
            if self._closing:
                return
            log.warning("image process %s %s", self._child.pid, exit_)
            self._recover()
            if not was_ready:
                await anyio.sleep(_RESTART_DELAY_S)

    async def close(self) -> None:
        self._closing = True
        if self._child is not None:
            await self._child.close(_CLOSE_GRACE_S)

    def _take(self, message: FromImages) -> None:
        if isinstance(message, ImagesReady):
            self._ready = True
        else:
            self._given.popleft()
            self._head_since = anyio.current_time()
            self._pool.answered(message)
        self.feed()

    async def _watch(self, child: Child[FromImages]) -> None:
        """Kill the process when one picture takes too long."""
        while True:
            if not self._given:
                self._busy = anyio.Event()
                await self._busy.wait()
            left_s = self._head_since + self._timeout_s - anyio.current_time()
            if left_s <= 0:
                self._timed_out = True
                child.kill()
                return
            await anyio.sleep(left_s)

    def _recover(self) -> None:
        """Answer for the picture that ended the process, or try it once more; the others go back into the queue."""
        given = list(self._given)
        self._given.clear()
        if not given:
            return
        head, *others = given
        self._pool.put_back(others)
        head.crashes += 1
        if self._timed_out:
            self._pool.give_up(head, "image_timeout", f"Opening the picture took over {self._timeout_s:g} s.")
        elif head.crashes < _MAX_CRASHES:
            self._pool.put_back([head])
        else:
            self._pool.give_up(head, "image_crashed", "Decoding the picture ended the image process twice.")
