"""ADR-006's testing checklist: each box is a test of its name, its adapter in Node against the bridge."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.adr006.conftest import StartBridge, StartClient
from tests.support.daemon import Connection, eventually, gone
from vlmd_bridge import record
from vlmd_bridge.demo import MODEL_PATH, iter_recording
from vlmd_bridge.engine.fake.answer import picture_record

# A batch of four takes about 0.4 s.
_SLOW = "fake:step_ms=10,tokens=40,width=4"

_RECORDING_FRAMES = 24
_RECORDING_SEED = 424242

# Screens that were mixed up would be right by chance only: one of 18 kinds.
_LEAST_RIGHT = {"parallel": 22, "interleaved": 18}


def test_bridge_starts_and_signals_ready(start_bridge: StartBridge) -> None:
    bridge = start_bridge()
    assert bridge.start_line()["status"] == "ready"
    assert bridge.process.poll() is None
    assert bridge.socket_path.is_socket()


def test_typescript_connects_successfully(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client()
    assert "error" not in client.describe(pictures[:1])
    with Connection(client.socket_path) as connection:
        assert connection.ask(1, "status")[0]["result"]["connections"] == 2


def test_single_batch_processes_correctly(start_client: StartClient, pictures: list[str]) -> None:
    outcome = start_client().describe(pictures[:4])
    assert [frame["imagePath"] for frame in outcome["results"]] == pictures[:4]
    assert [call["frames"] for call in outcome["callbacks"]] == [4]
    for frame in outcome["results"]:
        # The fake names a picture by its pixels: the right frame has the right words.
        _, digest, size = frame["description"].split()
        width, height = map(int, size.split("x"))
        assert _record(frame) == picture_record(digest, width, height)
    assert len({frame["description"] for frame in outcome["results"]}) == 4


def test_multiple_batches_stream_incrementally(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client(model=_SLOW)
    client.describe(pictures[:1])  # without the start
    times_ms = [call["ms"] for call in client.describe(pictures[:12])["callbacks"]]
    print(f"\nbatches after {', '.join(map(str, times_ms))} ms")
    # The first is there when a third of the work is done, not at the end.
    assert times_ms[0] < 0.6 * times_ms[-1]
    assert times_ms == sorted(times_ms)


def test_callbacks_fire_after_each_batch(start_client: StartClient, pictures: list[str]) -> None:
    callbacks = start_client().describe(pictures[:10])["callbacks"]
    assert [(call["frames"], call["current"], call["total"]) for call in callbacks] == [
        (4, 4, 10),
        (4, 8, 10),
        (2, 10, 10),
    ]


def test_output_format_matches_ollama_pipe_delimited() -> None:
    """The text between model and parser is the ADR's; the wire has its fields."""
    form = "description: ... | activity: ... | apps: [...] | topics: [...]"
    assert form in record.SINGLE_INSTRUCTIONS
    assert form in record.interleaved_instructions(4)
    text = "description: Editing main.py | activity: coding | apps: [VS Code, Terminal] | topics: [python, tests]"
    parsed = record.parse_record(text)
    assert parsed is not None
    assert record.format_record(parsed) == text
    assert (parsed.activity, parsed.apps, parsed.topics) == ("coding", ("VS Code", "Terminal"), ("python", "tests"))


def test_error_responses_handled(start_client: StartClient, pictures: list[str], tmp_path: Path) -> None:
    """The box that the ADR left open: a request's, a frame's, and a start's."""
    client = start_client()
    assert "params.images" in client.run(images=[])["error"]
    assert "params.batchSize" in client.run(images=[{"imagePath": "/a"}], params={"batchSize": 0})["error"]
    frames = client.describe([str(tmp_path / "missing.png"), pictures[0]])["results"]
    assert [frame.get("code") for frame in frames] == ["image_not_found", None]
    assert "error" not in client.describe(pictures[:1])
    failing = start_client(model="fake:broken=1")
    assert "asked to fail its load" in failing.describe(pictures[:1])["error"]


def test_socket_cleanup_on_exit(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client()
    client.describe(pictures[:1])
    assert client.socket_path.is_socket()
    assert client.quit() == 0
    eventually(lambda: not client.socket_path.exists(), 5, "the end of the socket")


def test_no_zombie_processes(start_client: StartClient, pictures: list[str]) -> None:
    client = start_client(model=_SLOW)
    client.describe(pictures[:4])
    _, bridge, *workers = client.family()
    client.send(images=[{"imagePath": path, "timestamp": 0.0} for path in pictures[:12]])
    for worker in workers:
        worker.kill()
    assert len(client.outcome()["results"]) == 12
    eventually(lambda: not _zombies(bridge), 5, "reaped workers")
    assert len(bridge.children()) == 2
    family = client.family()
    assert client.quit() == 0
    eventually(lambda: gone(family) and not any(map(psutil.pid_exists, _pids(family[2:]))), 5, "the end of them all")


@pytest.mark.model
@pytest.mark.skipif(not MODEL_PATH.is_dir(), reason="this checkout has no demo model")
@pytest.mark.parametrize("mode", ["parallel", "interleaved"])
def test_end_to_end_process_a_recording(start_client: StartClient, tmp_path: Path, mode: str) -> None:
    """A synthetic recording through the real engine: every frame is answered, with the words of its own screen."""
    paths = []
    truths = []
    for i, frame in enumerate(iter_recording(_RECORDING_SEED, _RECORDING_FRAMES)):
        path = tmp_path / f"{i:02d}.png"
        frame.image.save(path, compress_level=1)
        paths.append(str(path))
        truths.append(frame.record)
    client = start_client(model="demo", environ={"VLMD_MODE": mode})
    began_s = time.monotonic()
    outcome = client.describe(paths)
    took_s = time.monotonic() - began_s
    assert "error" not in outcome
    right = sum(_record(frame) == truth for frame, truth in zip(outcome["results"], truths, strict=True))
    print(f"\n{mode}: {right} of {len(truths)} exactly right in {took_s:.1f} s with the start")
    assert [call["current"] for call in outcome["callbacks"]] == [4, 8, 12, 16, 20, 24]
    assert not any("error" in frame or "raw_response" in frame for frame in outcome["results"])
    # That each frame has its own words is what counts here; how well the model knows its screens is tested beside it.
    assert right >= _LEAST_RIGHT[mode]


def _record(frame: dict[str, Any]) -> record.Record:
    return record.Record(
        description=frame["description"],
        activity=frame["activity"],
        apps=tuple(frame["apps"]),
        topics=tuple(frame["topics"]),
    )


def _zombies(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE]


def _pids(processes: list[psutil.Process]) -> list[int]:
    return [process.pid for process in processes]
