"""In which order the image processes get their pictures."""

from __future__ import annotations

import os

import anyio
import pytest

from vlmd_bridge.images.pool import ImagePool, default_count
from vlmd_bridge.workers.image_messages import ConfigureImages, Prepare
from vlmd_bridge.workers.messages import ImageSpec

_CONFIG = ConfigureImages(max_source_pixels=1000, max_source_bytes=1000, memory_limit_bytes=1 << 30)
_SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)


def _request(seq: int) -> Prepare:
    return Prepare(seq=seq, path=f"/{seq}.png", offset=0, spec=_SPEC)


def test_pictures_in_front_go_first_and_each_kind_in_its_order() -> None:
    pool = ImagePool(
        _CONFIG,
        arena_fd=-1,
        count=1,
        timeout_s=1,
        on_prepared=lambda _: None,
        on_failed=lambda *_: None,
        on_compared=lambda _: None,
        refreshed=lambda request: request,
    )
    for seq, front in enumerate([False, False, True, False, True]):
        pool.prepare(_request(seq), front=front)
    first = pool.next()
    assert first is not None
    pool.put_back([first])
    pool.prepare(_request(5), front=True)
    order = []
    while (picture := pool.next()) is not None:
        order.append(picture.request.seq)
    assert order == [2, 4, 5, 0, 1, 3]


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


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 1), (4, 1), (8, 2), (12, 3), (64, 4)])
def test_processes_by_cores(cores: int, processes: int) -> None:
    assert default_count(cores) == processes
