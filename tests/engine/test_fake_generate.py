"""The fake backend generates: deltas, stop strings, seeds, thinking and counts without a model."""

from __future__ import annotations

import msgspec

from tests.support.engine_process import EngineProcess
from vlmd_bridge.engine.fake.answer import plain_text, thinking_of
from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    Finished,
    RegexConstraint,
    Sampling,
    Start,
    Text,
    Turn,
)

HELLO = Start(seq=1, parts=(Text(text="Hello"),), max_tokens=500)


def fake(options: str = "") -> ConfigureEngine:
    return ConfigureEngine(backend="fake", name="fake", path=options)


def ask(start: Start, options: str = "") -> tuple[Finished, tuple[str, str], int]:
    with EngineProcess(fake(options)) as engine:
        engine.ready()
        engine.send(start)
        finished = engine.wait_ended(start.seq)[start.seq]
        assert isinstance(finished, Finished)
        return finished, engine.streamed(start.seq), sum(isinstance(m, Delta) for m in engine.received)


def test_deltas_are_the_text() -> None:
    finished, streamed, deltas = ask(msgspec.structs.replace(HELLO, stream=True))
    assert finished.text == plain_text(HELLO) == streamed[0]
    assert finished.reasoning is None and streamed[1] == ""
    assert deltas > 10 and finished.text.encode() and not finished.text.isascii()
    quiet, _, none = ask(HELLO)
    assert quiet.text == finished.text and none == 0
    assert finished.prompt_tokens == 2 and finished.completion_tokens >= deltas


def test_thinking_comes_apart() -> None:
    start = msgspec.structs.replace(
        HELLO, stream=True, thinking=True, constraint=RegexConstraint(pattern="(red|green)")
    )
    finished, streamed, _ = ask(start)
    assert (finished.text, finished.reasoning) == streamed == ("red", thinking_of(start))
    cut, _, _ = ask(msgspec.structs.replace(start, max_tokens=4))
    assert (cut.text, cut.finish_reason) == ("", "length")
    assert cut.reasoning and thinking_of(start).startswith(cut.reasoning)


def test_stop() -> None:
    whole = plain_text(HELLO)
    stop = whole.split()[3]
    finished, streamed, _ = ask(msgspec.structs.replace(HELLO, stream=True, stop=(stop, "never")))
    assert finished.text == streamed[0] == whole[: whole.index(stop)]
    assert finished.finish_reason == "stop"


def test_seeds_and_prompts_decide() -> None:
    def text(seed: int | None, temperature: float = 1.0, prompt: str = "Hello", history: tuple[Turn, ...] = ()) -> str:
        sampling = Sampling(temperature=temperature, seed=seed)
        return plain_text(Start(seq=1, parts=(Text(text=prompt),), history=history, max_tokens=9, sampling=sampling))

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)
    assert text(1, 0.0) == text(2, 0.0) != text(1)
    assert text(1, prompt="Bye") != text(1)
    assert text(1, history=(Turn(role="system", parts=(Text(text="Be brief."),)),)) != text(1)


def test_count() -> None:
    with EngineProcess(fake("context=100")) as engine:
        engine.ready()
        turn = Turn(role="system", parts=(Text(text="12345678"),))
        picture = engine.put_picture(bytes(64 * 32 * 3), 64, 32)
        engine.send(Count(seq=7, parts=(Text(text="1234"), picture), history=(turn,)))
        counted = engine.wait_for(Counted)
        assert (counted.seq, counted.prompt_tokens) == (7, 2 + 1 + 2)
        engine.send(Count(seq=8, parts=(Text(text="word " * 100),)))
        assert engine.wait_for(Counted) == Counted(seq=8, prompt_tokens=125, context_tokens=100)
