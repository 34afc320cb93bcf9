"""The vision backend in its own process, as the daemon runs it, on a tiny model."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engine_process import EngineProcess
from tests.support.engines import Pictures, ask, run_all, run_alone, vision_backend
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.record import parse_record
from vlmd_bridge.workers.messages import (
    Close,
    ConfigureEngine,
    Failed,
    Finished,
    ImageSpec,
    LoadFailed,
    Loading,
    Picture,
    RecordConstraint,
    Remove,
    Removed,
    Start,
    Text,
)

pytestmark = pytest.mark.model


def vision(path: Path, width: int = 4) -> ConfigureEngine:
    return ConfigureEngine(backend="vision", name="tiny", path=str(path), width=width, threads=1)


def test_frames_through_the_process(tiny_path: TinyPath) -> None:
    with EngineProcess(vision(tiny_path("qwen3_vl"))) as engine:
        info = engine.ready().info
        assert [m.stage for m in engine.received if isinstance(m, Loading)] == ["importing", "weights", "warming"]
        assert (info.model_type, info.dtype, info.device, info.threads) == ("qwen3_vl", "float32", "cpu", 1)
        assert info.weight_bytes == pytest.approx(
            (tiny_path("qwen3_vl") / "model.safetensors").stat().st_size, rel=0.05
        )
        assert info.image_spec == ImageSpec(factor=32, min_pixels=4096, max_pixels=65536, max_aspect_ratio=200.0)
        rng = random.Random(1)
        for seq in range(6):
            picture = engine.put_picture(rng.randbytes(96 * 64 * 3), 96, 64)
            parts = (Text(text="Describe."), picture)
            engine.send(Start(seq=seq, parts=parts, max_tokens=128, constraint=RecordConstraint()))
        engine.send(Remove(seq=5))
        ended = engine.wait_ended(*range(6))
        assert isinstance(ended[5], Removed)
        for seq in range(5):
            finished = ended[seq]
            assert isinstance(finished, Finished) and finished.finish_reason == "stop"
            assert parse_record(finished.text) is not None
            assert finished.prefill_s > 0 and finished.decode_s > 0 and finished.completion_tokens <= 128
        engine.send(Close())
        assert engine.wait_exit() == 0


def test_a_picture_that_cannot_be_begun_fails_alone(tiny_path: TinyPath) -> None:
    """Its tower begins when the sequence comes, before any step."""
    with EngineProcess(vision(tiny_path("qwen3_vl"))) as engine:
        engine.ready()
        nowhere = Picture(offset=engine.arena.size_bytes, width=96, height=64)
        good = Start(seq=1, parts=(Text(text="Go"),), max_tokens=8)
        engine.send(good, Start(seq=2, parts=(nowhere,), max_tokens=8))
        ended = engine.wait_ended(1, 2)
        assert isinstance(ended[1], Finished)
        assert isinstance(ended[2], Failed) and ended[2].code == "worker_error" and "ValueError" in ended[2].error


def test_a_prompt_that_cannot_be_made_fails_alone(tiny_path: TinyPath) -> None:
    """Whatever its processor or tower raises: nothing of it is in the batch yet."""
    pictures = Pictures()
    nowhere = Picture(offset=len(pictures.buffer), width=96, height=64)
    starts = [ask(1, "Go"), ask(2, nowhere), ask(3, "Go on", pictures.random(1, 96, 64))]
    with vision_backend(tiny_path("qwen3_vl"), pictures, off=("vision_tower",)) as backend:
        ended = run_all(backend, starts)
    assert isinstance(ended[1], Finished) and isinstance(ended[3], Finished)
    failed = ended[2]
    assert isinstance(failed, Failed) and failed.code == "worker_error" and "ValueError" in failed.error


def test_ends_cleanly_at_eof_while_running(tiny_path: TinyPath) -> None:
    with EngineProcess(vision(tiny_path("qwen3_vl"))) as engine:
        engine.ready()
        engine.send(Start(seq=1, parts=(Text(text="Go"),), max_tokens=5000, constraint=RecordConstraint()))
        engine.socket.close()
        assert engine.wait_exit() == 0


@pytest.mark.parametrize("broken", ["missing", "empty", "garbage"])
def test_load_fails_with_a_reason(broken: str, tiny_path: TinyPath, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if broken != "missing":
        folder.mkdir()
    if broken == "garbage":
        for file in tiny_path("qwen3_vl").iterdir():
            (folder / file.name).write_bytes(file.read_bytes()[: 900 if file.suffix == ".safetensors" else None])
    with EngineProcess(vision(folder)) as engine:
        failed = engine.wait_for(LoadFailed)
        assert failed.code == ("model_not_found" if broken == "missing" else "model_load_failed")
        assert str(folder) in failed.error
        assert engine.wait_exit() == 1


def test_a_step_that_raised_leaves_a_backend_that_works(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path("qwen3_vl"), pictures, width=2) as backend:
        start = ask(3, "Frame:", pictures.random(1, 96, 64), constraint=RecordConstraint(), max_tokens=128)
        expected = run_alone(backend, start)
        for seq in (1, 2):
            backend.start(msgspec.structs.replace(start, seq=seq))
        backend.start(start)  # waits for a slot
        for _ in range(4):
            assert backend.step() == []
        with monkeypatch.context() as patch:
            patch.setattr(type(backend.batch.sampler), "choose", _explode)
            with pytest.raises(RuntimeError, match="boom"):
                for _ in range(4):
                    backend.step()
        assert backend.reset() == {3}
        assert len(backend.batch) == 1
        events: list[Event] = []
        while not events:
            events += backend.step()
        (again,) = events
        assert isinstance(again, Finished) and isinstance(expected, Finished)
        assert again.text == expected.text


def _explode(*_: object) -> object:
    raise RuntimeError("boom")


def test_idle_releases_and_work_goes_on(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        texts = []
        for _ in range(2):
            finished = run_alone(backend, ask(1, "Go", max_tokens=6))
            assert isinstance(finished, Finished)
            texts.append(finished.text)
            backend.idle()
            assert backend.batch._generator is None
        assert texts[0] == texts[1]


def test_rows_run_in_the_order_they_came(tiny_path: TinyPath) -> None:
    """BatchGenerator alone sorts what waits by length."""
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=1) as backend:
        words = [40, 5, 30, 1]
        ended = run_all(backend, [ask(i, "word " * n, max_tokens=2) for i, n in enumerate(words)])
        assert list(ended) == [0, 1, 2, 3]


def test_one_bad_row_fails_alone(tiny_path: TinyPath) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path("qwen3_vl"), pictures) as backend:
        good = [ask(i, "Frame:", pictures.random(i, 96, 64)) for i in (1, 3)]
        odd = ask(2, "Frame:", pictures.random(2, 33, 65))
        thin = ask(4, "Frame:", pictures.random(4, 4096, 8))  # the processor raises beyond 200:1
        ended = run_all(backend, [good[0], odd, thin, good[1]])
        assert [type(ended[seq]) for seq in (1, 2, 3, 4)] == [Finished, Failed, Finished, Failed]


def test_a_template_that_refuses(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        processor = backend.prompts._processor
        processor.chat_template = "{{ raise_exception('System role not supported') }}"
        failed = run_alone(backend, ask(1, "Go"))
        assert isinstance(failed, Failed) and "System role not supported" in failed.error


def test_usage_counts(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        before = backend.usage()
        finished = run_alone(backend, ask(1, "Go", max_tokens=6))
        after = backend.usage()
        assert isinstance(finished, Finished) and isinstance(backend, VisionBackend)
        assert after.prompt_tokens - before.prompt_tokens == finished.prompt_tokens
        assert after.completion_tokens - before.completion_tokens == finished.completion_tokens
        assert after.active_memory_bytes > 0


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("others", [0, 2])
def test_removal_at_every_stage(name: str, others: int, tiny_path: TinyPath) -> None:
    """Waiting, half prefilled, prefilled, decoding: the row is gone at once and its neighbours do not notice."""
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures) as backend:
        gone = ask(9, "Frame:", pictures.random(9, 96, 64), max_tokens=20)
        kept = [ask(i, "Frame:", pictures.random(i, 96, 64), max_tokens=12) for i in range(others)]
        expected = {start.seq: run_alone(backend, start) for start in kept}
        for stage in range(7):
            for start in (*kept, gone):
                backend.start(start)
            ended = {event.seq: event for _ in range(stage) for event in backend.step()}
            backend.remove(9)
            for _ in range(100):
                ended |= {event.seq: event for event in backend.step()}
            ended.pop(9, None)  # it may have answered at once
            assert ended.keys() == expected.keys() and len(backend.batch) == 0
            for seq, event in ended.items():
                alone = expected[seq]
                assert isinstance(event, Finished) and isinstance(alone, Finished)
                assert event.text == alone.text
