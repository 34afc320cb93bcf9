"""In which order the image processes get their pictures, and which of them are given up."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from vlmd_bridge.images import pool as pool_module
from vlmd_bridge.images.pool import ImagePool, default_count
from vlmd_bridge.workers.arena import Arena
from vlmd_bridge.workers.child import Child
from vlmd_bridge.workers.image_messages import Compare, ConfigureImages, Luma, Prepare, Prepared, Reference
from vlmd_bridge.workers.messages import ImageSpec, Message

_CONFIG = ConfigureImages(max_source_pixels=1000, max_source_bytes=1000, memory_limit_bytes=1 << 30)
_SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)


def _request(seq: int) -> Prepare:
    return Prepare(seq=seq, path=f"/{seq}.png", offset=0, spec=_SPEC)


def _idle_pool() -> ImagePool:
    """A pool that is not run: what it is asked for stays in its queue."""
    return ImagePool(
        _CONFIG,
        arena_fd=-1,
        count=1,
        timeout_s=1,
        on_prepared=lambda _: None,
        on_failed=lambda *_: None,
        on_compared=lambda _: None,
        refreshed=lambda request: request,
    )


def _order(pool: ImagePool) -> list[int]:
    order = []
    while (picture := pool.next()) is not None:
        order.append(picture.request.seq)
    return order


def test_pictures_in_front_go_first_and_each_kind_in_its_order() -> None:
    pool = _idle_pool()
    for seq, front in enumerate([False, False, True, False, True]):
        pool.prepare(_request(seq), front=front)
    first = pool.next()
    assert first is not None
    pool.put_back([first])
    pool.prepare(_request(5), front=True)
    assert _order(pool) == [2, 4, 5, 0, 1, 3]


def test_pictures_are_withdrawn_while_they_wait_and_only_then() -> None:
    pool = _idle_pool()
    for seq, front in enumerate([False, False, True, False]):
        pool.prepare(_request(seq), front=front)
    handed_out = pool.next()
    assert handed_out is not None and handed_out.request.seq == 2
    assert pool.withdraw([]) == set()
    assert pool.withdraw([0, 2, 3, 99]) == {0, 3}
    assert pool.withdraw([0, 2, 3, 99]) == set()
    pool.put_back([handed_out])  # its process has ended: it waits again
    pool.prepare(_request(4))
    assert pool.withdraw({2}) == {2}
    assert _order(pool) == [1, 4]


def test_a_comparison_is_not_withdrawn_with_the_picture_of_its_number() -> None:
    pool = _idle_pool()
    pool.prepare(_request(1))
    luma = Luma(offset=0, width=1, height=1)
    pool.compare(Compare(seq=1, reference=Reference(luma=luma, threshold=0), others=(luma,)))
    assert pool.withdraw({1}) == {1}
    comparison = pool.next()
    assert comparison is not None and isinstance(comparison.request, Compare)
    assert _order(pool) == []


async def _give_up_many(arena_fd: int, count: int) -> list[int]:
    failed: list[int] = []

    def on_failed(seq: int, code: str, error: str) -> None:
        assert code == "image_crashed", error
        failed.append(seq)
        if seq + 1 < count:
            pool.prepare(_request(seq + 1))

    pool = ImagePool(
        _CONFIG, arena_fd=arena_fd, count=1, timeout_s=1, on_prepared=lambda _: None, on_failed=on_failed,
        on_compared=lambda _: None, refreshed=lambda request: request,
    )  # fmt: skip
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run)
            pool.prepare(_request(0))
            while len(failed) < count:
                await anyio.sleep(0.05)
            await pool.close()
            tasks.cancel_scope.cancel()
    return failed


def test_processes_that_never_start_fail_a_long_job_picture_by_picture() -> None:
    """Each failure asks for the next picture, thousands of times: no deeper with each."""
    with open(os.devnull, "rb") as no_arena:  # what cannot be mapped ends the process at its start
        assert anyio.run(_give_up_many, no_arena.fileno(), 5000) == list(range(5000))


class _StoppedAfterOne:
    """A pool of one process, stopped once it has opened a picture; two more are asked for then."""

    def __init__(self, arena_fd: int, path: Path) -> None:
        self.prepared: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self._path = path
        self.pool = ImagePool(
            _CONFIG, arena_fd=arena_fd, count=1, timeout_s=2, on_prepared=self._on_prepared,
            on_failed=lambda seq, code, error: self.failed.append((seq, code)),
            on_compared=lambda _: None, refreshed=lambda request: request,
        )  # fmt: skip

    def _on_prepared(self, picture: Prepared) -> None:
        self.prepared.append(picture.seq)
        if picture.seq == 0:
            (pid,) = self.pool.pids
            os.kill(pid, signal.SIGSTOP)
            self.ask(1, 2)

    def ask(self, *seqs: int) -> None:
        for seq in seqs:
            self.pool.prepare(Prepare(seq=seq, path=str(self._path), offset=0, spec=_SPEC))

    async def answers(self) -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.pool.run)
                self.ask(0)
                while len(self.prepared) + len(self.failed) < 3:
                    await anyio.sleep(0.02)
                await self.pool.close()
                tasks.cancel_scope.cancel()


async def _end_with_an_answer(child: Child[Any]) -> None:
    """End a stopped process, but let it first do what it was asked for until now."""
    assert child.pid is not None
    os.kill(child.pid, signal.SIGCONT)
    await child.close(60)


@pytest.fixture
def stopped(tmp_path: Path) -> Any:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    arena = Arena()
    yield _StoppedAfterOne(arena.fd, tmp_path / "a.png")
    arena.close()


def test_only_the_picture_that_took_too_long_is_given_up(stopped: _StoppedAfterOne) -> None:
    anyio.run(stopped.answers)
    assert (stopped.prepared, stopped.failed) == ([0, 2], [(1, "image_timeout")])


def test_a_picture_that_comes_in_the_last_moment_costs_not_the_next_one(
    stopped: _StoppedAfterOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Child, "end_hung", _end_with_an_answer)
    anyio.run(stopped.answers)
    assert (stopped.prepared, stopped.failed) == ([0, 1, 2], [])


def test_processes_that_are_ready_too_late_do_not_keep_pictures_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Child.send

    def send_and_stop(child: Child[Any], message: Message) -> None:
        send(child, message)
        if isinstance(message, ConfigureImages):
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)

    monkeypatch.setattr(Child, "send", send_and_stop)
    monkeypatch.setattr(Child, "end_hung", _end_with_an_answer)
    monkeypatch.setattr(pool_module, "_FIRST_DELAY_S", 0.01)
    arena = Arena()
    assert anyio.run(_give_up_many, arena.fd, 1) == [0]
    arena.close()


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 1), (4, 1), (8, 2), (12, 3), (64, 4)])
def test_processes_by_cores(cores: int, processes: int) -> None:
    assert default_count(cores) == processes
