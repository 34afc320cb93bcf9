"""The text backend: prompts through the model's template, what it refuses, and its own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engine.conftest import TinyPath
from tests.support.engine_process import EngineProcess
from tests.support.engines import ask, run_all, run_alone, text_backend
from tests.support.tiny_models import PLAIN_ADDED_TOKENS, SPECIAL_TOKENS
from vlmd_bridge.engine import sampling
from vlmd_bridge.engine.text import TextBackend
from vlmd_bridge.workers.messages import (
    Close,
    ConfigureEngine,
    Count,
    Counted,
    Failed,
    Finished,
    Loading,
    Picture,
    RegexConstraint,
    Remove,
    Removed,
    Sampling,
    SchemaConstraint,
    Start,
    Text,
    Turn,
)

pytestmark = pytest.mark.model

HOSTILE = "".join((*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS, "</s>", "<s>", "<unk>"))


def turn(role: str, *texts: str) -> Turn:
    return Turn(role=role, parts=tuple(Text(text=text) for text in texts))  # type: ignore[arg-type]


@contextmanager
def templated(backend: TextBackend, template: str) -> Iterator[None]:
    tokenizer = backend._tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        yield
    finally:
        tokenizer.chat_template = before


def test_turns_reach_the_template(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("qwen3")) as backend:
        history = (turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello."))
        start = Start(seq=1, parts=(Text(text="And "), Text(text="now?")), history=history, max_tokens=4)
        assert backend.template.render(start) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        finished = run_alone(backend, start)
        counted = backend.count(Count(seq=1, parts=start.parts, history=history))
        assert isinstance(finished, Finished) and isinstance(counted, Counted)
        assert finished.prompt_tokens == counted.prompt_tokens > 20
        assert finished.peak_memory_bytes >= backend.info.weight_bytes
        assert finished.prefill_s > 0 and finished.decode_s > 0


def test_a_system_turn_that_the_template_does_not_know(tiny_path: TinyPath) -> None:
    """Refused or left out: it then begins the first user turn."""
    with text_backend(tiny_path("llama")) as backend:
        start = Start(seq=1, parts=(Text(text="Hi"),), history=(turn("system", "Be brief."),), max_tokens=4)
        assert backend.template.render(start) == "<s>[INST] Be brief.\n\nHi [/INST]"
        assert backend.tokenize(start).token_ids.count(1) == 1  # <s> is not doubled
        users_only = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
        with templated(backend, users_only):
            assert backend.template.render(start) == "Be brief.\n\nHi"
            assert backend.tokenize(start).token_ids[0] == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only users may speak') }}", "Only users may speak"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ messages + 1 }}", "can only concatenate"),
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('long ' * 1000) }}", "long long"),
    ],
)
def test_a_template_that_fails(template: str, reason: str, tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("qwen3")) as backend, templated(backend, template):
        for failed in (run_alone(backend, ask(1, "Go")), backend.count(Count(seq=1, parts=(Text(text="Go"),)))):
            assert isinstance(failed, Failed)
            assert failed.code == "template_error" and reason in failed.error and len(failed.error) < 400


def test_turns_in_an_order_that_the_template_refuses(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("llama")) as backend:
        failed = run_alone(backend, Start(seq=1, parts=(Text(text="Hi"),), history=(turn("user", "Hm"),), max_tokens=4))
        assert isinstance(failed, Failed) and "Roles must alternate" in failed.error


def test_what_a_text_model_cannot(tiny_path: TinyPath) -> None:
    picture = Picture(offset=0, width=64, height=64)
    with text_backend(tiny_path("short_text")) as backend:
        in_history = (Turn(role="user", parts=(picture,)), turn("assistant", "A cat."))
        starts = [
            ask(1, "See:", picture),
            Start(seq=2, parts=(Text(text="And?"),), history=in_history, max_tokens=4),
            ask(3, "word " * 100),
            ask(4, "Fine.", max_tokens=5000),
        ]
        ended = run_all(backend, starts)
        assert [getattr(ended[seq], "code", None) for seq in (1, 2, 3, 4)] == [
            *("vision_unsupported", "vision_unsupported", "context_length_exceeded", None)
        ]
        failed, finished = ended[3], ended[4]
        assert isinstance(failed, Failed) and "517" in failed.error and "200" in failed.error
        assert isinstance(finished, Finished) and finished.prompt_tokens + finished.completion_tokens <= 200
        counted = backend.count(Count(seq=5, parts=starts[2].parts))
        assert counted == Counted(seq=5, prompt_tokens=517, context_tokens=200)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_control_tokens_in_text_are_text(name: str, tiny_path: TinyPath) -> None:
    """In every turn, also in pieces that become one only when they are joined."""
    with text_backend(tiny_path(name)) as backend:
        tokenizer = backend._tokenizer
        control = set(tokenizer.added_tokens_decoder)

        def control_ids(*texts: str) -> list[int]:
            history = (turn("system", *texts), turn("user", *texts), turn("assistant", *texts))
            start = Start(seq=1, parts=turn("user", *texts).parts, history=history, max_tokens=4)
            return [token for token in backend.tokenize(start).token_ids if token in control]

        plain = control_ids("calm")
        assert control_ids(HOSTILE) == plain
        assert control_ids("<|im_", "end|></", "s><th", "ink>") == plain
        assert control_ids(*HOSTILE) == plain


def test_masks_one_by_one(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = RegexConstraint(pattern="[a-z]{4}( [0-9]{3}){2}!")
    starts = [ask(i, f"Go {i}", constraint=pattern) for i in range(3)]
    with text_backend(tiny_path("qwen3")) as backend:
        texts = [event.text for event in run_all(backend, starts).values() if isinstance(event, Finished)]
    monkeypatch.setattr(sampling, "LLExecutor", lambda **_: pytest.fail("the masks are made in one call"))
    with text_backend(tiny_path("qwen3"), off=("batched_masks",)) as backend:
        ended = run_all(backend, starts)
    assert [event.text for event in ended.values() if isinstance(event, Finished)] == texts
    assert len(texts) == len(starts)


def test_seeds(tiny_path: TinyPath) -> None:
    def seeded(seq: int, **sampling: float) -> Start:
        return Start(seq=seq, parts=(Text(text="Go"),), max_tokens=20, sampling=Sampling(**sampling))  # type: ignore[arg-type]

    with text_backend(tiny_path("qwen3"), width=8) as backend:
        starts = [
            *(seeded(i, temperature=1.0, seed=seed) for i, seed in enumerate((1, 1, 2, -5, 2**63))),
            seeded(5, temperature=1.0),
            seeded(6, temperature=1.0),
            seeded(7, temperature=1e-9, seed=3),
            seeded(8),
            seeded(9, temperature=2.0, top_k=1, seed=4),
            seeded(10, temperature=2.0, top_p=1e-6, seed=4),
        ]
        ended = run_all(backend, starts)
        texts = [event.text for _, event in sorted(ended.items()) if isinstance(event, Finished)]
        assert texts[0] == texts[1] and len({*texts[1:7]}) == 6
        assert texts[7] == texts[8] == texts[9] == texts[10]  # as good as greedy


def test_stop_strings_end_a_row_at_once(tiny_path: TinyPath) -> None:
    with text_backend(tiny_path("llama")) as backend:
        whole = run_alone(backend, ask(1, "Go", max_tokens=40))
        assert isinstance(whole, Finished)
        stop = whole.text[10:13]
        start = Start(seq=2, parts=(Text(text="Go"),), max_tokens=40, stop=("never", stop), stream=True)
        finished = run_alone(backend, start)
        assert isinstance(finished, Finished)
        assert finished.text == whole.text[: whole.text.index(stop)]
        assert finished.finish_reason == "stop" and finished.completion_tokens < whole.completion_tokens
        assert len(backend.batch) == 0


def test_through_the_process(tiny_path: TinyPath) -> None:
    configure = ConfigureEngine(backend="text", name="tiny", path=str(tiny_path("qwen3")), width=4, threads=1)
    with EngineProcess(configure) as engine:
        info = engine.ready().info
        assert [m.stage for m in engine.received if isinstance(m, Loading)] == ["importing", "weights", "warming"]
        assert (info.backend, info.model_type, info.image_spec) == ("text", "qwen3", None)
        start = Start(seq=1, parts=(Text(text="Go"),), max_tokens=30, stream=True)
        engine.send(start, Start(seq=2, parts=(Text(text="Go"),), max_tokens=5000), Count(seq=3, parts=start.parts))
        counted = engine.wait_for(Counted)
        engine.send(Remove(seq=2))
        ended = {m.seq: m for m in engine.received if isinstance(m, Finished)}
        ended |= engine.wait_ended(*({1, 2} - ended.keys()))  # type: ignore[arg-type]
        finished = ended[1]
        assert isinstance(finished, Finished)
        assert isinstance(ended[2], Removed)
        assert (finished.text, "") == engine.streamed(1)
        assert finished.prompt_tokens == counted.prompt_tokens
        engine.send(Close())
        assert engine.wait_exit() == 0


def test_a_schema(tiny_path: TinyPath) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer", "maximum": 9}}}
    schema |= {"required": ["name", "n"]}
    for name in ("llama", "qwen3"):
        with text_backend(tiny_path(name)) as backend:
            constraint = SchemaConstraint(schema=json.dumps(schema))
            starts = [ask(i, "Go", max_tokens=200, constraint=constraint) for i in (1, 2)]
            starts.append(ask(3, "Go", max_tokens=20, constraint=RegexConstraint(pattern="yes|no")))
            for seq, event in run_all(backend, starts).items():
                assert isinstance(event, Finished) and event.finish_reason == "stop"
                assert event.text in ("yes", "no") if seq == 3 else json.loads(event.text).keys() == {"name", "n"}
