"""A constrained answer is whole within its budget, whatever the model, and a model that behaves is left alone."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_all, run_alone, vision_backend
from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.grammar.grammars import MAX_LIST_ITEMS, Grammars
from vlmd_bridge.engine.grammar.json_bounds import bound_schema
from vlmd_bridge.record import Record, format_interleaved, format_record, parse_interleaved, parse_record
from vlmd_bridge.workers.messages import (
    Constraint,
    Failed,
    Finished,
    RecordConstraint,
    RegexConstraint,
    Sampling,
    SchemaConstraint,
)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer(tiny_path: TinyPath) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny_path("qwen3_vl")))


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, [tokenizer.eos_token_id])


class Writer:
    """Writes one answer under a constraint with a model of the test's own: `choose` picks among allowed tokens."""

    def __init__(self, grammars: Grammars, constraint: Constraint, max_tokens: int) -> None:
        self.matcher = grammars.matcher(constraint, max_tokens)
        self.max_tokens = max_tokens
        self.tokenizer = grammars.tokenizer
        self.words = np.zeros(-(-grammars.vocab_size // 32), dtype=np.int32)
        self.budget = grammars.budget(constraint, max_tokens, max_tokens)
        self.tokens: list[int] = []
        self.closed_early = False

    def allowed(self) -> list[int]:
        if self.budget is not None and (forced := self.budget.forced(self.matcher)) is not None:
            self.closed_early = True
            return [forced]
        if forced_tokens := self.matcher.compute_ff_tokens():
            return [int(forced_tokens[0])]
        self.matcher.unsafe_compute_mask_ptr(self.words.ctypes.data, self.words.nbytes)
        if self.budget is not None:
            self.budget.narrow(self.words)
        return [int(i) for i in np.flatnonzero(np.unpackbits(self.words.view(np.uint8), bitorder="little"))]

    def write(self, token: int) -> None:
        assert self.matcher.consume_token(token), self.matcher.get_error()
        self.tokens.append(token)
        if self.budget is not None:
            self.budget.advance(token)

    def run(self, choose: random.Random) -> str | None:
        """Return the answer, or None when the tokens ran out."""
        while not self.matcher.is_stopped():
            if len(self.tokens) == self.max_tokens:
                return None
            self.write(choose.choice(self.allowed()))
        ended = self.tokens[-1] == self.tokenizer.eos_token  # a number says no other way that it is whole
        return str(self.tokenizer.decode_bytes(self.tokens[:-1] if ended else self.tokens).decode())


@pytest.mark.parametrize("max_tokens", [128, 500])
def test_random_bytes_close_within_the_budget(grammars: Grammars, max_tokens: int) -> None:
    """The worst model there is: it draws tokens, most of them single bytes, evenly."""
    longest = 0
    for seed in range(40):
        writer = Writer(grammars, RecordConstraint(), max_tokens)
        text = writer.run(random.Random(seed))
        assert text is not None, f"seed {seed} ran over: {grammars.tokenizer.decode_bytes(writer.tokens)!r}"
        record = parse_record(text)
        assert record is not None, text
        assert len(record.apps) <= MAX_LIST_ITEMS and len(record.topics) <= MAX_LIST_ITEMS
        longest = max(longest, len(writer.tokens))
    print(f"40 random records within {max_tokens} tokens, the longest {longest}")


class _Hog(random.Random):
    """Never ends a field by itself: it avoids what could end one."""

    def __init__(self, grammars: Grammars, taste: bytes) -> None:
        super().__init__(0)
        self._grammars = grammars
        self._taste = taste

    def choice(self, seq: Any) -> Any:
        for token in seq:
            if self._grammars.tokenizer.decode_bytes([token]) == self._taste:
                return token
        texts = {token: self._grammars.tokenizer.decode_bytes([token]) for token in seq}
        inside = [token for token, text in texts.items() if not set(text) & set(b"|],\n")]
        return super().choice(inside or seq)


@pytest.mark.parametrize("taste", [b"a", b" ", b",", b"\xf0", b"\xe3", b"-"])
@pytest.mark.parametrize("max_tokens", [128, 500])
def test_a_model_that_never_stops_is_closed(grammars: Grammars, max_tokens: int, taste: bytes) -> None:
    for frames in (1, 3):
        constraint = RecordConstraint(frame_count=frames, labelled=frames > 1)
        writer = Writer(grammars, constraint, max_tokens * frames)
        text = writer.run(_Hog(grammars, taste))
        assert text is not None, grammars.tokenizer.decode_bytes(writer.tokens)
        assert writer.closed_early
        records = [parse_record(text)] if frames == 1 else [record for record, _ in parse_interleaved(text, frames)]
        assert len(records) == frames and all(records), text


_WORDS = st.text(st.sampled_from("abc XYZ 019.:;-'\"()/é漢"), min_size=1, max_size=30)
_FIELDS = _WORDS.map(str.strip).filter(bool)
_ITEMS = st.lists(_FIELDS.map(lambda s: s.strip("\"' ")).filter(bool), max_size=MAX_LIST_ITEMS).map(tuple)
_RECORDS = st.builds(Record, description=_FIELDS, activity=_FIELDS, apps=_ITEMS, topics=_ITEMS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(_RECORDS, min_size=1, max_size=3))
def test_every_record_can_be_written(grammars: Grammars, tokenizer: Any, records: list[Record]) -> None:
    """The grammar takes whatever `format_record` writes, token by token as the tokenizer splits it."""
    labelled = len(records) > 1
    text = format_interleaved(records) if labelled else format_record(records[0])
    constraint = RecordConstraint(frame_count=len(records), labelled=labelled)
    matcher = grammars.matcher(constraint, 5000)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert matcher.validate_tokens(tokens) == len(tokens)


def test_an_answer_of_usual_length_is_not_touched(grammars: Grammars, tokenizer: Any) -> None:
    """A long but sane record, in the tokenizer's own tokens, is never forced anywhere."""
    record = Record(
        description="A dark code editor shows a Python file with a traceback in the terminal below",
        activity="debugging",
        apps=("VS Code", "Terminal"),
        topics=("unit tests", "tracebacks"),
    )
    tokens = tokenizer.encode(format_record(record), add_special_tokens=False)
    writer = Writer(grammars, RecordConstraint(), 500)
    for token in tokens:
        assert token in writer.allowed()
        writer.write(token)
    assert writer.matcher.is_stopped() and not writer.closed_early


@pytest.mark.parametrize(
    "text",
    [
        "description:  x | activity: a | apps: [] | topics: []",
        "description: x | activity:  | apps: [] | topics: []",
        "description: x\ny | activity: a | apps: [] | topics: []",
        "description: x | activity: a | apps: [b|c] | topics: []",
        "description: x | activity: a | apps: [[b]] | topics: []",
        "description: x | activity: a | apps: [, b] | topics: []",
        "description: x | activity: a | apps: [1, 2, 3, 4, 5, 6, 7, 8, 9] | topics: []",
        "description: \u3000 | activity: a | apps: [] | topics: []",
        "Sure! description: x | activity: a | apps: [] | topics: []",
    ],
)
def test_what_a_record_is_not(grammars: Grammars, tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert grammars.matcher(RecordConstraint(), 500).validate_tokens(tokens) < len(tokens)


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["title", "count", "tags", "kind"],
}


@pytest.mark.parametrize("max_tokens", [128, 500])
def test_schemas_close_within_the_budget(grammars: Grammars, max_tokens: int) -> None:
    for seed in range(20):
        writer = Writer(grammars, SchemaConstraint(schema=json.dumps(SCHEMA)), max_tokens)
        text = writer.run(random.Random(seed))
        assert text is not None, grammars.tokenizer.decode_bytes(writer.tokens)
        value = json.loads(text)
        assert value.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
        assert isinstance(value["title"], str) and value["kind"] in ("a", "b") and 0 <= value["count"] <= 99


def test_bounds_keep_what_a_schema_says() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"type": "string"}}}
    bounded = bound_schema(schema, 200)
    assert bounded["properties"]["a"]["maxLength"] == 3
    assert 100 < bounded["properties"]["b"]["maxLength"] < 200
    assert bounded["additionalProperties"] is False
    listed = bound_schema({"type": "array", "items": {"type": "string"}, "minItems": 2}, 400)
    assert listed["minItems"] == 2 <= listed["maxItems"]


@pytest.mark.parametrize(
    "constraint",
    [
        SchemaConstraint(schema="{"),
        SchemaConstraint(schema="3"),
        SchemaConstraint(schema='{"type": "nothing"}'),
        SchemaConstraint(schema='{"$ref": "#/nowhere"}'),
        RegexConstraint(pattern="("),
        RegexConstraint(pattern="(?=x)"),
    ],
)
def test_wrong_constraints(grammars: Grammars, constraint: Constraint) -> None:
    with pytest.raises(SequenceError) as caught:
        grammars.matcher(constraint, 500)
    assert caught.value.code == "schema_invalid"
    assert str(caught.value)


def test_grammars_are_compiled_once(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.matcher(RegexConstraint(pattern="once+"), 9)
    monkeypatch.setattr(grammars, "_compile", lambda *_: pytest.fail("compiled again"))
    grammars.matcher(RegexConstraint(pattern="once+"), 99)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_random_models_write_whole_records(name: str, tiny_path: TinyPath) -> None:
    pictures = Pictures()
    with vision_backend(tiny_path(name), pictures, width=8) as backend:
        starts = [
            ask(i, "Frame:", pictures.random(i, 96, 64), max_tokens=128, constraint=RecordConstraint())
            for i in range(8)
        ]
        starts.append(
            ask(8, "Frames", max_tokens=300, constraint=RecordConstraint(frame_count=2, labelled=True)),
        )
        for seq, event in run_all(backend, starts).items():
            assert isinstance(event, Finished) and event.finish_reason == "stop", event
            assert event.completion_tokens <= starts[seq].max_tokens
            records = [r for r, _ in parse_interleaved(event.text, 2)] if seq == 8 else [parse_record(event.text)]
            assert all(records), event.text


def test_constraints_through_the_backend(tiny_path: TinyPath) -> None:
    with vision_backend(tiny_path("qwen3_vl"), Pictures(), width=8) as backend:
        constraints: list[Constraint | None] = [
            RegexConstraint(pattern="[a-z]{3}-[0-9]{4}"),
            SchemaConstraint(schema=json.dumps(SCHEMA)),
            SchemaConstraint(schema="{"),
            None,
            RegexConstraint(pattern="yes|no"),
        ]
        starts = [ask(i, "Go", max_tokens=200, constraint=c) for i, c in enumerate(constraints)]
        ended = run_all(backend, starts)
        texts = {seq: event.text for seq, event in ended.items() if isinstance(event, Finished)}
        assert texts[0][3] == "-" and len(texts[0]) == 8 and texts[4] in ("yes", "no")
        assert json.loads(texts[1]).keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
        assert isinstance(ended[2], Failed) and ended[2].code == "schema_invalid"
        assert 3 in texts


def test_temperature(tiny_path: TinyPath) -> None:
    """Greedy by default, whatever generation_config.json says; warm rows differ, beside greedy ones that do not."""
    with vision_backend(tiny_path("qwen2_5_vl"), Pictures(), width=8) as backend:
        greedy = [ask(i, "Go", max_tokens=16) for i in range(2)]
        warm = [
            type(s)(seq=i + 2, parts=s.parts, max_tokens=16, sampling=Sampling(temperature=1.5))
            for i, s in enumerate(greedy * 2)
        ]
        ended = run_all(backend, greedy + warm)
        texts = [event.text for _, event in sorted(ended.items()) if isinstance(event, Finished)]
        alone = run_alone(backend, greedy[0])
        assert isinstance(alone, Finished)
        assert texts[0] == texts[1] == alone.text
        assert len(set(texts[2:])) > 1


def test_no_wasted_token(tiny_path: TinyPath) -> None:
    """A row ends with the token that completes its record, not a step later with an EOS."""
    with vision_backend(tiny_path("qwen3_vl"), Pictures()) as backend:
        finished = run_alone(backend, ask(1, "Go", max_tokens=50, constraint=RegexConstraint(pattern="[a-c]{4}")))
        assert isinstance(finished, Finished)
        assert finished.completion_tokens <= 4 and len(finished.text) == 4


def test_undecodable_ids_are_left_out(tokenizer: Any) -> None:
    from vlmd_bridge.engine.detokenizer import Detokenizer, decode

    tokens = tokenizer.encode("the cat", add_special_tokens=False)
    assert decode(Detokenizer(tokenizer), [*tokens, len(tokenizer) + 5, tokenizer.eos_token_id]) == "the cat"
