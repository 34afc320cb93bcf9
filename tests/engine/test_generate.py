"""What `generate` asks of a loaded model beyond a record: thinking, streams, stop strings, counts."""

from __future__ import annotations

import random
from string import ascii_letters

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_all, run_alone, text_backend, vision_backend
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.batch import Row
from vlmd_bridge.engine.control import RowControl
from vlmd_bridge.engine.model_backend import ModelBackend
from vlmd_bridge.engine.sampling import BatchSampler
from vlmd_bridge.workers.messages import (
    Count,
    Counted,
    Failed,
    Finished,
    RecordConstraint,
    RegexConstraint,
    Sampling,
    SchemaConstraint,
    Start,
    Text,
    Turn,
)

pytestmark = pytest.mark.model

PATTERN = RegexConstraint(pattern="(red|green){3}")
OPENS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if enable_thinking %}{{ '<think>\n' }}{% endif %}"
)


class Dictated(BatchSampler):
    """Writes what a test dictates, token by token, where the grammar does not say otherwise."""

    def __init__(self, sampler: BatchSampler, tokens: list[int]) -> None:
        super().__init__(sampler._words * 32)
        self.dictated = tokens

    def choose(self, logits, rows):  # type: ignore[no-untyped-def]
        position = rows[0].position
        if position < len(self.dictated):
            wanted = mx.zeros_like(logits)
            wanted[:, self.dictated[position]] = 1e4
            logits = wanted
        return super().choose(logits, rows)


def dictated(backend: ModelBackend, text: str, start: Start) -> Event:
    """Return how `start` ends when the model writes `text` first."""
    sampler = backend.batch.sampler
    tokens = backend.detokenizer._tokenizer.encode(text, add_special_tokens=False)
    backend.batch.close()
    backend.batch.sampler = Dictated(sampler, tokens)
    event = run_alone(backend, start)
    backend.batch.close()
    backend.batch.sampler = sampler
    return event


def dictate(backend: ModelBackend, text: str, start: Start) -> Finished:
    """Return the same, of an answer that does not fail."""
    finished = dictated(backend, text, start)
    assert isinstance(finished, Finished), finished
    return finished


def go(*, thinking: bool = True, max_tokens: int = 60, **fields: object) -> Start:
    return msgspec.structs.replace(ask(1, "Go"), thinking=thinking, max_tokens=max_tokens, stream=True, **fields)


@pytest.mark.parametrize("name", ["qwen3", "llama"])  # the tags as tokens, and as plain text
def test_thinking_opened_by_the_template(name: str, tiny_path: TinyPath) -> None:
    with text_backend(tiny_path(name)) as backend:
        backend._tokenizer.chat_template = OPENS
        free = dictate(backend, "First é,\nthen.\n</think>\n\nSo: yes", go(max_tokens=80))
        assert free.reasoning == "First é,\nthen." and free.text.startswith("So: yes")
        held = dictate(backend, "hm hm</think>", go(constraint=PATTERN, max_tokens=80))
        assert held.reasoning == "hm hm" and held.finish_reason == "stop"
        assert set(held.text.replace("red", "r").replace("green", "g")) <= {"r", "g"} and len(held.text) >= 9
        cut = dictate(backend, "on and on and on", go(max_tokens=6))
        assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("", "length", 6) and cut.reasoning
        quiet = run_alone(backend, go(thinking=False, constraint=PATTERN))
        assert isinstance(quiet, Finished) and quiet.reasoning is None and len(quiet.text) >= 9


def test_a_model_that_begins_to_think_by_itself(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("qwen3")) as backend:
        thought = dictate(backend, "<think>\nhm\n</think>\n\n", go(constraint=PATTERN))
        assert thought.reasoning == "hm" and len(thought.text) >= 9 and thought.finish_reason == "stop"
        at_once = dictate(backend, "red", go(constraint=PATTERN))
        assert at_once.reasoning is None and at_once.text.startswith("red")
        # Not asked to think: the tag is no way out of the grammar.
        forbidden = dictate(backend, "<think>", go(thinking=False, constraint=PATTERN))
        assert forbidden.reasoning is None and len(forbidden.text) >= 9
        plain = dictate(backend, "<think>hm</think>Yes", go(thinking=False))
        assert plain.reasoning == "hm" and plain.text.startswith("Yes")
        streamed = dictate(backend, "hm</think>Yes", go())
        assert streamed.reasoning is None and streamed.text.startswith("hmYes")
        orphan = dictate(backend, "hm</think>Yes", msgspec.structs.replace(go(), stream=False))
        assert orphan.reasoning == "hm" and orphan.text.startswith("Yes")
        # A template that knows thinking and no way to turn it off: its text waits for the tag.
        backend._template.may_close_only = True
        held = dictate(backend, "hm</think>Yes", go())
        assert held.reasoning == "hm" and held.text.startswith("Yes")


@pytest.mark.parametrize("rows", ["own", "mlx-vlm", "mlx-lm"])
def test_an_answer_that_ends_too_early(rows: str, tiny_path: TinyPath) -> None:
    """Whatever decodes it, a constrained answer that is not whole is no answer."""
    backend_of = (
        text_backend(tiny_path("qwen3"))
        if rows == "mlx-lm"
        else vision_backend(tiny_path("qwen3_vl"), Pictures(), off=() if rows == "own" else ("own_decode",))
    )
    with backend_of as backend:
        ended = dictated(backend, "<think>\nhm<|im_end|>", go(constraint=PATTERN))
        assert isinstance(ended, Failed) and ended.code == "worker_error" and "thinking" in ended.error
        # llguidance runs out of expressions, and its mask then allows the end alone.
        outgrown = RegexConstraint(pattern="([A-Za-z]{1,40}[0-9 ]?){1,300}!")
        endless = "".join(random.Random(1).choices(ascii_letters, k=400))
        failed = dictated(backend, endless, go(constraint=outgrown, thinking=False, max_tokens=400))
        assert isinstance(failed, Failed) and failed.code == "schema_invalid"
        assert "too many expressions" in failed.error and len(failed.error) < 300
        whole = dictate(backend, "ab cd!", go(constraint=outgrown, thinking=False))
        assert (whole.text, whole.finish_reason) == ("ab cd!", "stop")
        thought = dictate(backend, "<think>hm</think>ab cd!", go(constraint=outgrown))
        assert (thought.text, thought.reasoning, thought.finish_reason) == ("ab cd!", "hm", "stop")
        # Ended by the model, not by the grammar, which would take more.
        either = RegexConstraint(pattern="[a-z]+")
        assert dictate(backend, "cat<|im_end|>", go(constraint=either, thinking=False)).text == "cat"


def test_a_schema_behind_thinking_gets_what_is_left(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("qwen3")) as backend:
        backend._tokenizer.chat_template = OPENS
        schema = SchemaConstraint(schema='{"type":"array","items":{"type":"string"},"minItems":1}')
        for constraint in (schema, RecordConstraint()):
            finished = dictate(backend, "x" * 100 + "</think>", go(constraint=constraint, max_tokens=230))
            assert finished.finish_reason == "stop" and finished.reasoning == "x" * 100
            assert finished.text.endswith("]") and finished.completion_tokens <= 230


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_vl"])
def test_characters_are_never_split(name: str, tiny_path: TinyPath) -> None:
    """Byte by byte, as these tokenizers have it; `run_all` checks that deltas add up."""
    backend_of = vision_backend(tiny_path(name), Pictures()) if name == "qwen3_vl" else text_backend(tiny_path(name))
    with backend_of as backend:
        text = "héllo 日本語 🙂👩‍💻 ñ <b> done"
        start = msgspec.structs.replace(go(thinking=False, max_tokens=400), stop=("done",))
        assert dictate(backend, text, start).text == text.removesuffix("done")
        broken = dictate(backend, "caf", go(thinking=False, max_tokens=4))
        assert broken.text.startswith("caf")


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_counts_are_those_of_the_prompt(name: str, tiny_path: TinyPath) -> None:
    """With pictures in several turns, and without a look at their pixels."""
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures) as backend:
        unit = backend.info.image_spec.factor if backend.info.image_spec else 0
        first, second = pictures.random(1, unit * 3, unit * 2), pictures.random(2, unit * 4, unit * 4)
        history = (
            Turn(role="system", parts=(Text(text="Be brief."),)),
            Turn(role="user", parts=(Text(text="One:"), first)),
            Turn(role="assistant", parts=(Text(text="A cat <|im_end|>"),)),
        )
        start = Start(seq=1, parts=(Text(text="And this?"), second), history=history, max_tokens=3)
        finished = run_alone(backend, start)
        blank = msgspec.structs.replace(second, offset=10**12)
        counted = backend.count(Count(seq=1, parts=(Text(text="And this?"), blank), history=history))
        assert isinstance(finished, Finished) and isinstance(counted, Counted), (finished, counted)
        assert counted.prompt_tokens == finished.prompt_tokens > 22
        assert finished.peak_memory_bytes > backend.info.weight_bytes


def test_a_count_beyond_the_context(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("short_context"), Pictures()) as backend:
        counted = backend.count(Count(seq=1, parts=(Text(text="word " * 100),)))
        assert counted == Counted(seq=1, prompt_tokens=525, context_tokens=200)


def test_a_seed_decides_alone(tiny_path: TinyPath) -> None:
    """Whatever joins, leaves or was there before."""
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=4) as backend:
        seeded = [
            msgspec.structs.replace(
                ask(i, f"Go {i % 2}", max_tokens=24),
                sampling=Sampling(temperature=1.1, top_p=0.95, top_k=50, seed=7 + i % 3),
            )
            for i in range(9)
        ]
        together = run_all(backend, seeded)
        for start in seeded[:3]:
            alone = run_alone(backend, start)
            assert isinstance(alone, Finished) and isinstance(together[start.seq], Finished)
            assert alone.text == together[start.seq].text  # type: ignore[union-attr]
        assert together[0].text == together[6].text != together[3].text  # type: ignore[union-attr]


def test_truncation_keeps_what_it_should() -> None:
    """Drawn often enough, exactly the tokens of the top k and of the nucleus come, in their proportions."""
    probs = np.array([0.4, 0.3, 0.15, 0.1, 0.05] + [0.0] * 400)
    logits = mx.array(np.log(np.maximum(probs, 1e-30))[None].repeat(4, axis=0).astype(np.float32)) + 3.0
    samplings = [{}, {"top_k": 3}, {"top_p": 0.71}, {"top_k": 4, "top_p": 0.7}]
    rows = [
        RowControl(max_tokens=9, sampling=Sampling(temperature=1.0, seed=seed, **kind))  # type: ignore[arg-type]
        for seed, kind in enumerate(samplings)
    ]
    sampler = BatchSampler(405)
    draws = np.array([sampler.choose(logits, rows).tolist() for _ in range(600)])
    kept = [sorted(set(column.tolist())) for column in draws.T]
    assert kept == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2], [0, 1]]
    assert abs(np.mean(draws[:, 1] == 0) - 0.4 / 0.85) < 0.07
    assert abs(np.mean(draws[:, 0] == 0) - 0.4) < 0.07


def test_a_penalty_counts_the_prompt_and_the_answer(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("qwen3"), trace=True) as backend:
        plain = run_alone(backend, ask(1, "Go", max_tokens=40))
        start = msgspec.structs.replace(ask(2, "Go", max_tokens=40), sampling=Sampling(repetition_penalty=1.8))
        rows: list[Row] = []
        event = backend._event

        def keep(row: Row) -> Event:
            rows.append(row)
            return event(row)

        backend._event = keep  # type: ignore[method-assign]
        fresh = run_alone(backend, start)
        assert isinstance(plain, Finished) and isinstance(fresh, Finished)
        assert len(set(rows[0].tokens)) > 0.9 * len(rows[0].tokens)
