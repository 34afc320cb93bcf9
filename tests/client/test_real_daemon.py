"""The client against ``vlmd serve`` itself, with the deterministic fake in place of a model."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

import vlmd
from tests.client.conftest import is_gone, process_state, wait_until, wait_until_gone

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("PIL", "numpy", "psutil"))), reason="the daemon's packages are not installed"
)


@pytest.fixture
def images(folder: Path) -> list[Path]:
    from PIL import Image

    paths = [folder / f"{at}.png" for at in range(60)]
    for at, path in enumerate(paths):
        Image.new("RGB", (64, 64), (at * 4, 0, 0)).save(path)
    return paths


def own(model: str = "fake", **timeouts: float) -> vlmd.Client:
    return vlmd.Client(model, python=sys.executable, timeouts=vlmd.Timeouts(**timeouts))


def test_describe(images: list[Path]) -> None:
    with own() as client:
        batches = list(client.describe([vlmd.Image(path, timestamp=1.5, id=path.name) for path in images]))
        frames = [frame for batch in batches for frame in batch.results]
        assert [frame.id for frame in frames] == [path.name for path in images]
        assert all(frame.ok and frame.description for frame in frames)
        assert len({frame.description for frame in frames}) == 60
        assert batches[-1].progress == vlmd.Progress(current=60, total=60)
        (missing,) = client.describe_all([images[0].with_name("none")])
        assert missing.code == "image_not_found"
        with pytest.raises(vlmd.ModelError) as caught:
            client.describe_all(images, model="another")
        assert caught.value.code == "model_not_loaded"
        status = client.status()
        assert status.owned
        pid = status.pid
    assert is_gone(pid)


def test_a_kill_costs_no_frame(images: list[Path]) -> None:
    frames: list[vlmd.Frame] = []
    with own("fake:step_ms=2") as client:
        first = client.hello().pid
        for batch in client.describe(images):
            frames += batch.results
            if batch.batch == 5:
                os.kill(first, signal.SIGKILL)
        assert client.hello().pid != first
    assert [frame.index for frame in frames] == list(range(60))
    assert all(frame.ok for frame in frames)


def test_to_leave_frees_the_daemon(images: list[Path]) -> None:
    with own("fake:step_ms=20") as client:
        for _ in client.describe(images):
            break
        wait_until(lambda: client.status().queue.jobs == 0)
        assert client.status().frames_done < 60


def test_a_load_restarts_the_deadline(images: list[Path]) -> None:
    with own("fake:load_s=2.4", first_byte_s=1.6) as client:
        assert client.ping().state == "loading"
        assert len(client.describe_all(images)) == 60


def test_a_model_that_cannot_be_loaded(images: list[Path]) -> None:
    with own("fake:broken=1") as client, pytest.raises((vlmd.StartError, vlmd.ModelError)) as caught:
        client.describe_all(images)
    assert isinstance(caught.value, vlmd.StartError | vlmd.ModelError)
    assert caught.value.code.startswith("model_")
    with own("/nowhere/at/all") as client, pytest.raises(vlmd.StartError, match="/nowhere/at/all") as start:
        client.ping()
    assert start.value.code == "model_not_found"


def test_a_stopped_daemon(images: list[Path]) -> None:
    with own(connect_s=0.3) as client:
        pid = client.hello().pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(pid) in ("T", ""))
        with pytest.raises(vlmd.DeadlineError):
            client.ping()
        os.kill(pid, signal.SIGCONT)
        assert len(vlmd.Client.describe_all(client, images)) == 60
        assert client.hello().pid == pid


def test_racing_starters_share_one(images: list[Path], folder: Path) -> None:
    counts: list[int] = []
    pids: set[int] = set()

    def work() -> None:
        with vlmd.Client("fake", socket=folder / "s", python=sys.executable) as client:
            counts.append(len(client.describe_all(images)))
            pids.add(client.hello().pid)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with vlmd.Client(socket=folder / "s", start=False) as client:
        client.shutdown()
    (pid,) = pids
    wait_until_gone(pid)
    assert counts == [60, 60, 60]


def test_the_daemon_ends_with_a_killed_parent() -> None:
    code = (
        "import os, sys, vlmd; client = vlmd.Client('fake', python=sys.executable);"
        "print(client.hello().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=20).stdout
    wait_until_gone(int(output))


@pytest.mark.anyio
async def test_the_async_client(images: list[Path]) -> None:
    async with vlmd.AsyncClient("fake", python=sys.executable) as client, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(client.describe_all, images)
        assert len(await client.describe_all(images, mode="interleaved")) == 60
        pid = (await client.hello()).pid
    assert is_gone(pid)
