"""The image processes, as the daemon holds them: pictures handed out, hangs and crashes survived."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

import anyio
import anyio.abc

from vlmd_bridge.workers.child import Child
from vlmd_bridge.workers.image_messages import (
    Compare,
    Compared,
    ConfigureImages,
    FromImages,
    ImagesReady,
    Likeness,
    PictureFailed,
    Prepare,
    Prepared,
)
from vlmd_bridge.workers.quiet import Quiet

log = logging.getLogger("vlmd.images")

# The picture that is worked on. A second one in the process's socket would hide the round trip (no gain was measured),
# but one that somebody waits for would wait behind it too. The engine has a width of pictures ahead.
_DEPTH = 1

# A picture during which the process ended so often is given up.
_MAX_CRASHES = 2

# A core in so many opens pictures, unless told otherwise: one process opens 80 PNGs of a screen a second, 280 JPEGs.
_CORES_PER_PROCESS = 4
_MAX_DEFAULT_PROCESSES = 4

# Between the end of a process that did no work and the start of the next; twice as long each time.
_FIRST_DELAY_S = 0.25
_MAX_DELAY_S = 10.0

# After so many of those in a row, pictures are no longer kept waiting for one that works.
_MAX_USELESS_STARTS = 4

_CLOSE_GRACE_S = 2.0
_URGENT_GRACE_S = 0.25


@dataclass(slots=True, eq=False)
class _Picture:
    """A picture to open, or pictures to compare."""

    request: Prepare | Compare
    front: bool = False
    crashes: int = 0


def default_count(cores: int) -> int:
    """Return how many processes suit a machine of so many cores."""
    return max(1, min(_MAX_DEFAULT_PROCESSES, cores // _CORES_PER_PROCESS))


class ImagePool:
    """Hands pictures to processes, in order, those in front first; every picture is answered once."""

    def __init__(
        self,
        config: ConfigureImages,
        *,
        arena_fd: int,
        count: int,
        timeout_s: float,
        on_prepared: Callable[[Prepared], None],
        on_failed: Callable[[int, str, str], None],
        on_compared: Callable[[Compared], None],
        refreshed: Callable[[Prepare], Prepare],
    ) -> None:
        self._queue: deque[_Picture] = deque()
        self._on_prepared = on_prepared
        self._on_failed = on_failed
        self._on_compared = on_compared
        self._hopeless = anyio.Event()
        self._refreshed = refreshed
        self._workers = [_Worker(self, config, arena_fd, timeout_s) for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    def prepare(self, request: Prepare, *, front: bool = False) -> None:
        """Queue a picture; one in `front` goes before others."""
        place = sum(picture.front for picture in self._queue) if front else len(self._queue)
        self._queue.insert(place, _Picture(request, front))
        self._feed()

    def compare(self, request: Compare) -> None:
        """Have pictures compared before any further one is opened: what follows waits for it."""
        self._queue.appendleft(_Picture(request, front=True))
        self._feed()

    def withdraw(self, seqs: Collection[int]) -> set[int]:
        """Take pictures out of the queue; return which of `seqs` were in it.

        No answer comes for those, and nothing will be written where they were to go. The others are with a process,
        which may write at any moment, or were answered. Comparisons, which are numbered apart, stay.
        """
        kept: deque[_Picture] = deque()
        withdrawn = set()
        for picture in self._queue:
            if isinstance(picture.request, Prepare) and picture.request.seq in seqs:
                withdrawn.add(picture.request.seq)
            else:
                kept.append(picture)
        self._queue = kept
        return withdrawn

    async def run(self) -> None:
        """Keep the processes running until cancelled."""
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(worker.run)
            while True:
                await self._hopeless.wait()
                self._hopeless = anyio.Event()
                self.give_up_if_useless()

    async def close(self, *, urgent: bool = False) -> None:
        """End the processes, all at once; `urgent` where the owner is gone and we must be, too."""
        grace_s = _URGENT_GRACE_S if urgent else _CLOSE_GRACE_S
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(worker.close, grace_s)

    def next(self) -> _Picture | None:
        """Take the picture that is next."""
        if not self._queue:
            return None
        picture = self._queue.popleft()
        if isinstance(picture.request, Prepare):
            picture.request = self._refreshed(picture.request)
        return picture

    def put_back(self, pictures: list[_Picture]) -> None:
        """Let pictures be next again, in their order."""
        self._queue.extendleft(reversed(pictures))

    def answered(self, message: Prepared | Compared | PictureFailed) -> None:
        """Pass on what a process said."""
        match message:
            case Prepared():
                self._on_prepared(message)
            case Compared():
                self._on_compared(message)
            case PictureFailed():
                self._on_failed(message.seq, message.code, message.error)

    def give_up_if_useless(self) -> None:
        """Answer for what waits while no process starts: better an error than silence."""
        while all(worker.useless for worker in self._workers) and (picture := self.next()) is not None:
            self.give_up(picture, "image_crashed", "The image process does not start; the log has its last lines.")

    def give_up(self, picture: _Picture, code: str, error: str) -> None:
        """Answer for a picture that no process answered for."""
        if isinstance(picture.request, Compare):
            self._on_compared(Compared(seq=picture.request.seq, likenesses=(Likeness(same=False),)))
        else:
            self._on_failed(picture.request.seq, code, error)

    def _feed(self) -> None:
        if all(worker.useless for worker in self._workers):
            # Not at once: an answer from within `prepare` would ask for the next picture from within, and so on.
            self._hopeless.set()
        for worker in sorted(self._workers, key=lambda worker: worker.load):
            worker.feed()


class _Worker:
    """One image process and its successors."""

    def __init__(self, pool: ImagePool, config: ConfigureImages, arena_fd: int, timeout_s: float) -> None:
        self._pool = pool
        self._config = config
        self._arena_fd = arena_fd
        self._timeout_s = timeout_s
        self._child: Child[FromImages] | None = None
        self._ready = False
        self._closing = anyio.Event()
        self._given: deque[_Picture] = deque()  # the first is the one being worked on
        self._useless_starts = 0
        self._quiet = Quiet(timeout_s)
        self._ending = False  # by us, which takes a moment, in which it may yet answer
        self._timed_out: _Picture | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def useless(self) -> bool:
        return self._useless_starts >= _MAX_USELESS_STARTS

    @property
    def load(self) -> int:
        return len(self._given)

    def feed(self) -> None:
        """Hand over pictures, as far as the process takes them; one that is being ended answers for none."""
        while self._ready and not self._ending and self._child is not None and len(self._given) < _DEPTH:
            picture = self._pool.next()
            if picture is None:
                return
            if not self._given:
                self._quiet.progress()
            self._given.append(picture)
            self._child.send(picture.request)

    async def run(self) -> None:
        while not self._closing.is_set():
            child = self._child = Child("image", arena_fd=self._arena_fd, incoming=FromImages, on_message=self._take)
            self._ending, self._timed_out = False, None
            self._quiet.progress()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, child)
                exit_ = await child.run(self._config)
                tasks.cancel_scope.cancel()
            was_ready, self._ready = self._ready, False
            if self._closing.is_set():
                return
            log.warning("an image process %s", exit_.report)
            self._recover()
            self._useless_starts = 0 if was_ready else self._useless_starts + 1
            self._pool.give_up_if_useless()
            if not was_ready:
                delay_s: float = _FIRST_DELAY_S * 2 ** (self._useless_starts - 1)
                with anyio.move_on_after(min(delay_s, _MAX_DELAY_S)):
                    await self._closing.wait()

    async def close(self, grace_s: float) -> None:
        self._closing.set()
        if self._child is not None:
            await self._child.close(grace_s, grace_s)

    def _take(self, message: FromImages) -> None:
        self._quiet.progress()
        if isinstance(message, ImagesReady):
            if not self._ending:  # too late is as good as never: it has done no work
                self._ready = True
                self._useless_starts = 0
        else:
            self._given.popleft()
            self._pool.answered(message)
        self.feed()

    async def _watch(self, child: Child[FromImages]) -> None:
        """End the process when its start or one picture takes too long, however busy it is with that."""
        looked_at = anyio.current_time()
        while True:
            await anyio.sleep(self._quiet.tick_s)
            now = anyio.current_time()
            if self._ready and not self._given:
                self._quiet.progress()
            else:
                self._quiet.tick(now - looked_at)
            looked_at = now
            if self._quiet.hung:
                self._ending = True
                self._timed_out = self._given[0] if self._given else None
                log.error(
                    "an image process took over %g s for %s",
                    self._timeout_s,
                    "a picture" if self._ready else "its start",
                )
                await child.end_hung()
                return

    def _recover(self) -> None:
        """Answer for the picture that ended the process, or try it once more; the others go back into the queue."""
        given = list(self._given)
        self._given.clear()
        if not given:
            return
        head, *others = given
        self._pool.put_back(others)
        head.crashes += 1
        if head is self._timed_out:
            self._pool.give_up(head, "image_timeout", f"Opening the picture took over {self._timeout_s:g} s.")
        elif head.crashes < _MAX_CRASHES:
            self._pool.put_back([head])
        else:
            self._pool.give_up(head, "image_crashed", "Decoding the picture ended the image process twice.")
