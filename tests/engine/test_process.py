"""The worker process keeps its contract with the daemon, whatever its backend does."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import psutil
import pytest

from tests.support.engine_process import EngineProcess
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.fake.answer import picture_record, pixels_digest, plain_text
from vlmd_bridge.engine.fake.backend import FakeBackend
from vlmd_bridge.engine.fault_points import FaultPoints
from vlmd_bridge.engine.process import EngineWorker
from vlmd_bridge.record import format_interleaved, format_record
from vlmd_bridge.workers.messages import (
    Beat,
    Close,
    ConfigureEngine,
    Constraint,
    Failed,
    Finished,
    ImageSpec,
    LoadFailed,
    Loading,
    Message,
    RecordConstraint,
    RegexConstraint,
    Remove,
    Removed,
    SchemaConstraint,
    Start,
    Text,
    ToEngine,
)


def fake(options: str = "", width: int = 0) -> ConfigureEngine:
    return ConfigureEngine(backend="fake", name="fake", path=options, width=width)


def pixels(seed: int, width: int = 64, height: int = 32) -> bytes:
    return bytes((seed * 7 + i * 13) % 256 for i in range(width * height * 3))


def describe(engine: EngineProcess, seq: int, *, max_tokens: int = 500) -> tuple[Start, str]:
    """Return the Start of one frame and the answer it must get."""
    raw = pixels(seq)
    start = Start(
        seq=seq,
        parts=(Text(text="Describe.\nFrame:"), engine.put_picture(raw, 64, 32)),
        max_tokens=max_tokens,
        constraint=RecordConstraint(),
    )
    return start, format_record(picture_record(pixels_digest(raw), 64, 32))


def test_loads_and_reports() -> None:
    with EngineProcess(fake("load_s=0.05,width=3,factor=28,max_pixels=50176")) as engine:
        ready = engine.ready()
        assert ready.pid == engine.process.pid
        assert ready.info.width == 3
        assert ready.info.image_spec == ImageSpec(factor=28, min_pixels=4096, max_pixels=50176, max_aspect_ratio=200.0)
        stages = [m.stage for m in engine.received if isinstance(m, Loading)]
        assert stages == ["importing", "weights", "warming"]
        engine.send(Close())
        assert engine.wait_exit() == 0


def test_starts_fast() -> None:
    """Processor time, since the machine has other work; an import of the model stack would cost a second of it."""
    with EngineProcess(fake()) as engine:
        engine.ready()
        times = psutil.Process(engine.process.pid).cpu_times()
    took_s = times.user + times.system
    print(f"fake engine ready after {took_s * 1000:.0f} ms of processor time")
    assert took_s < 0.4


def test_every_picture_gets_its_own_words() -> None:
    with EngineProcess(fake("width=4")) as engine:
        engine.ready()
        work = [describe(engine, seq) for seq in range(12)]
        engine.send(*(start for start, _ in work))
        ended = engine.wait_ended(*range(12))
        for start, expected in work:
            finished = ended[start.seq]
            assert isinstance(finished, Finished)
            assert (finished.text, finished.finish_reason) == (expected, "stop")
            assert finished.completion_tokens > 1


def test_interleaved_answer_is_labelled() -> None:
    with EngineProcess(fake()) as engine:
        engine.ready()
        raws = [pixels(seed) for seed in (1, 2, 3)]
        parts = [part for raw in raws for part in (Text(text="Frame:"), engine.put_picture(raw, 64, 32))]
        engine.send(
            Start(
                seq=1,
                parts=tuple(parts),
                max_tokens=2000,
                constraint=RecordConstraint(frame_count=3, labelled=True),
            )
        )
        finished = engine.wait_ended(1)[1]
        assert isinstance(finished, Finished)
        assert finished.text == format_interleaved([picture_record(pixels_digest(raw), 64, 32) for raw in raws])


def test_cut_by_length() -> None:
    with EngineProcess(fake("tokens=24")) as engine:
        engine.ready()
        start, expected = describe(engine, 1, max_tokens=5)
        engine.send(start)
        finished = engine.wait_ended(1)[1]
        assert isinstance(finished, Finished)
        assert (finished.finish_reason, finished.completion_tokens) == ("length", 5)
        assert expected.startswith(finished.text)


def test_remove_waiting_running_and_unknown() -> None:
    with EngineProcess(fake("width=1,step_ms=2,tokens=200")) as engine:
        engine.ready()
        running, _ = describe(engine, 1)
        waiting, _ = describe(engine, 2)
        engine.send(running, waiting, Remove(seq=2), Remove(seq=99))
        assert isinstance(engine.wait_ended(2)[2], Removed)
        engine.send(Remove(seq=1))
        assert isinstance(engine.wait_ended(1)[1], Removed)
        engine.send(Remove(seq=1))  # late: it is out already, and is not acknowledged twice
        after, expected = describe(engine, 3)
        engine.send(after)
        finished = engine.wait_ended(3)[3]
        assert isinstance(finished, Finished) and finished.text == expected


def test_beats_while_running_only() -> None:
    with EngineProcess(fake("step_ms=5,tokens=500")) as engine:
        engine.ready()
        start, _ = describe(engine, 1)
        engine.send(start)
        beat = engine.wait_for(Beat)
        assert beat.active == 1
        engine.wait_ended(1)
        engine.received.clear()
        with pytest.raises(TimeoutError):
            engine.receive(1.3)


def test_a_step_that_raises_fails_what_had_begun_and_the_worker_lives() -> None:
    with EngineProcess(fake("step_ms=5,width=2"), faults=["worker.raise@step:3"]) as engine:
        engine.ready()
        engine.send(*(describe(engine, seq)[0] for seq in range(6)))
        ended = engine.wait_ended(*range(6))
        failed = [each for each in ended.values() if isinstance(each, Failed)]
        assert failed == [ended[seq] for seq in range(len(failed))]
        assert 1 <= len(failed) <= 2  # the second may not have been read by then
        for each in failed:
            assert each.code == "worker_error" and "InjectedFault" in each.error
            assert each.together == (len(failed) == 2)
        start, expected = describe(engine, 3)
        engine.send(start)
        finished = engine.wait_ended(3)[3]
        assert isinstance(finished, Finished) and finished.text == expected


class _Link:
    """Keeps what the worker says. As its inbox: gives it all starts at once, and closes when each has ended."""

    socket = None  # of faults, and there is none

    def __init__(self, starts: list[Start]) -> None:
        self.messages: list[ToEngine] = [*starts]
        self.ended: dict[int, Finished | Failed] = {}
        self._starts = len(starts)

    def send(self, *messages: Message) -> None:
        self.ended |= {message.seq: message for message in messages if isinstance(message, Finished | Failed)}

    def get_nowait(self) -> ToEngine | None:
        return self.messages.pop(0) if self.messages else None

    def get(self, timeout_s: float | None = None) -> ToEngine:
        return self.messages.pop(0) if len(self.ended) < self._starts else Close()


@pytest.mark.parametrize(
    ("rows", "failed", "together"), [(3, [0, 1, 2], True), (1, [0], False), (0, [0, 1, 2, 3, 4], True)]
)
def test_a_failed_step_costs_what_had_begun_and_what_waits_goes_on(
    monkeypatch: pytest.MonkeyPatch, rows: int, failed: list[int], together: bool
) -> None:
    """Where nothing had begun, all of it is to blame: kept, it would fail each further step."""
    link = _Link([Start(seq=seq, parts=(Text(text="hi"),), max_tokens=99) for seq in range(5)])
    with closing(mmap.mmap(-1, 1)) as arena:
        backend = FakeBackend.load(fake(width=3), arena, lambda stage, fraction: None)
        step = backend.step

        def raise_once() -> Sequence[Event]:
            if len(backend._rows) == rows and not link.ended:
                raise RuntimeError("boom")
            return step()

        monkeypatch.setattr(backend, "step", raise_once)
        EngineWorker(backend, cast("Any", link), cast("Any", link), FaultPoints(arena, cast("Any", link))).run()
    assert [seq for seq, end in sorted(link.ended.items()) if isinstance(end, Failed)] == failed
    assert all(end.together == together for end in link.ended.values() if isinstance(end, Failed))
    assert len(link.ended) == 5


def test_a_sequence_fails_alone() -> None:
    digest = pixels_digest(pixels(2))
    with EngineProcess(fake(), faults=[f"worker.raise@pixels:{digest}"]) as engine:
        engine.ready()
        engine.send(*(describe(engine, seq)[0] for seq in (1, 2, 3)))
        ended = engine.wait_ended(1, 2, 3)
        assert [type(ended[seq]) for seq in (1, 2, 3)] == [Finished, Failed, Finished]


def test_crash_on_one_picture() -> None:
    digest = pixels_digest(pixels(2))
    with EngineProcess(fake(), faults=[f"worker.exit=70@pixels:{digest}"]) as engine:
        engine.ready()
        engine.send(describe(engine, 2)[0])
        assert engine.wait_exit() == 70


@pytest.mark.parametrize("options", ["broken=1", "no_such_option=1", "width=many", "broken=perhaps"])
def test_load_fails(options: str) -> None:
    with EngineProcess(fake(options)) as engine:
        failed = engine.wait_for(LoadFailed)
        assert failed.code == "model_invalid"
        assert "fake backend" in failed.error
        assert engine.wait_exit() == 1


def test_ends_with_its_daemon() -> None:
    for configure in (None, fake(), fake("load_s=30")):
        with EngineProcess(configure) as engine:
            if configure is not None:
                engine.wait_for(Loading)
            engine.socket.close()
            assert engine.process.wait(5) == 0


def test_close_drops_what_runs() -> None:
    with EngineProcess(fake("step_ms=20,tokens=500")) as engine:
        engine.ready()
        engine.send(describe(engine, 1)[0], Close())
        assert engine.wait_exit() == 0


def test_ctrl_c_is_the_daemons_business() -> None:
    with EngineProcess(fake()) as engine:
        engine.ready()
        engine.process.send_signal(signal.SIGINT)
        start, _ = describe(engine, 1)
        engine.send(start)
        assert isinstance(engine.wait_ended(1)[1], Finished)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.wait_exit() == -signal.SIGTERM


def test_nothing_on_standard_output() -> None:
    with EngineProcess(fake()) as engine:
        engine.ready()
        engine.send(Close())
        engine.wait_exit()
        assert engine.process.stdout is not None and engine.process.stdout.read() == b""


def test_context_is_bounded() -> None:
    with EngineProcess(fake("context=100")) as engine:
        engine.ready()
        engine.send(Start(seq=1, parts=(Text(text="word " * 200),), max_tokens=10))
        failed = engine.wait_ended(1)[1]
        assert isinstance(failed, Failed)
        assert failed.code == "context_length_exceeded"
        assert "250" in failed.error and "100" in failed.error


def test_schema_and_regex() -> None:
    schema = '{"type":"object","properties":{"n":{"type":"integer"},"s":{"type":"string"}},"required":["n","s"]}'
    with EngineProcess(fake()) as engine:
        engine.ready()
        parts = (Text(text="hi"),)
        constraints: list[Constraint] = [
            SchemaConstraint(schema=schema),
            SchemaConstraint(schema="{"),
            RegexConstraint(pattern="(red|green)"),
            RegexConstraint(pattern="["),
        ]
        engine.send(
            *(Start(seq=i, parts=parts, max_tokens=99, constraint=c) for i, c in enumerate(constraints)),
            Start(seq=4, parts=parts, max_tokens=99),
        )
        ended = engine.wait_ended(0, 1, 2, 3, 4)
        texts = [e.text if isinstance(e, Finished) else getattr(e, "code", None) for _, e in sorted(ended.items())]
        hi = plain_text(Start(seq=0, parts=parts, max_tokens=99))
        assert texts == ['{"n":0,"s":"text"}', "schema_invalid", "red", "schema_invalid", hi]


def test_pictures_are_read_where_they_stand() -> None:
    with EngineProcess(fake()) as engine:
        engine.ready()
        first, second = pixels(1), pixels(2)
        engine.put_picture(first, 64, 32)
        picture = engine.put_picture(second, 64, 32)
        assert picture.offset > 0
        engine.send(Start(seq=1, parts=(picture,), max_tokens=99))
        finished = engine.wait_ended(1)[1]
        assert isinstance(finished, Finished)
        assert finished.text == f"Picture {pixels_digest(second)} 64x32"
