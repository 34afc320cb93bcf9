"""Any schema closes within its budget, with whatever text; one that cannot be enforced is refused with a reason."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from tests.engine.conftest import TinyPath
from tests.engine.test_grammar import Writer, _Hog
from tests.support.engines import Pictures, run_all, text_backend, vision_backend
from tests.support.json_schema import validates
from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.grammar.grammars import Grammars
from vlmd_bridge.workers.messages import Constraint, Finished, RegexConstraint, SchemaConstraint, Text

pytestmark = pytest.mark.model

_STRING = {"type": "string"}
_PERSON = {
    "type": "object",
    "properties": {"name": _STRING, "age": {"type": "integer", "minimum": 18, "maximum": 99}, "note": _STRING},
    "required": ["name", "age"],
}
SCHEMAS: dict[str, Any] = {
    "frame": {
        "type": "object",
        "properties": {
            "description": _STRING,
            "activity": {"enum": ["coding", "reading", "a meeting, with slides"]},
            "apps": {"type": "array", "items": _STRING},
            "topics": {"type": "array", "items": _STRING, "minItems": 1},
            "confidence": {"type": "number"},
        },
        "required": ["description", "activity", "apps", "topics"],
    },
    "people": {"type": "array", "items": _PERSON},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "label": _STRING,
                    "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["label", "left", "children"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "patterns": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,}$"},
            "tail": {"type": "string", "pattern": "^(a|b)*c$"},
            "day": {"type": "string", "format": "date"},
            "long": {"type": "string", "minLength": 20},
        },
        "required": ["id", "tail", "day", "long"],
    },
    "map": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}},
    "either": {
        "anyOf": [_PERSON, {"type": "array", "items": {"anyOf": [_STRING, {"type": "null"}, _PERSON]}}, _STRING]
    },
    "names": {
        "type": "object",
        "properties": {"$ref": _STRING, "minLength": {"type": "boolean"}, "enum": {"type": "null"}, "type": _STRING},
        "required": ["$ref", "minLength", "type"],
    },
    "number": {"type": "number"},
    "anything": {},
}


@pytest.fixture(scope="module", params=["qwen3_vl", "llama"])
def grammars(request: pytest.FixtureRequest, tiny_path: TinyPath) -> Grammars:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_path(request.param)))
    return Grammars(tokenizer, [tokenizer.eos_token_id])


def write(grammars: Grammars, schema: Any, max_tokens: int, choose: random.Random) -> str:
    writer = Writer(grammars, SchemaConstraint(schema=json.dumps(schema)), max_tokens)
    text = writer.run(choose)
    assert text is not None, f"cut off: {grammars.tokenizer.decode_bytes(writer.tokens)!r}"
    return text


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_text_closes_within_the_budget(name: str, grammars: Grammars) -> None:
    for seed in range(6):
        for max_tokens in (160, 512):
            text = write(grammars, SCHEMAS[name], max_tokens, random.Random(seed))
            assert validates(json.loads(text), SCHEMAS[name]), text


@pytest.mark.parametrize("taste", [b"[", b"{", b'"', b"\xf0", b"\\", b",", b"1"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_model_with_one_taste_closes(name: str, taste: bytes, grammars: Grammars) -> None:
    """It nests, opens, escapes or counts whenever that is allowed."""
    text = write(grammars, SCHEMAS[name], 200, _Hog(grammars, taste))
    assert validates(json.loads(text), SCHEMAS[name]), text


def test_nothing_is_forced_while_there_is_time(grammars: Grammars) -> None:
    """A sane answer, in the tokenizer's own tokens, is written as it is."""
    value = {"description": "Ein Editor zeigt Python, daneben läuft ein Test 🙂", "activity": "coding"}
    value |= {"apps": ["VS Code", "Terminal"], "topics": ["tests"]}  # type: ignore[dict-item]
    writer = Writer(grammars, SchemaConstraint(schema=json.dumps(SCHEMAS["frame"])), 512)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    tokens = grammars.tokenizer.tokenize_str(text)
    for token in tokens:
        assert writer.budget is not None and writer.budget.forced(writer.matcher) is None
        writer.write(token)
    assert writer.matcher.is_stopped()


def test_random_models_write_whole_answers(tiny_path: TinyPath) -> None:
    """Vision and text models; greedy rows, which repeat themselves, and warm ones, which write bytes at random."""
    from vlmd_bridge.workers.messages import Sampling, Start

    names = list(SCHEMAS)[:4]
    whole = 0
    for model in ("qwen3_vl", "qwen3_5", "llama", "qwen3"):
        pictures = Pictures()
        opened = text_backend(tiny_path(model), width=8)
        if model in ("qwen3_vl", "qwen3_5"):
            opened = vision_backend(tiny_path(model), pictures, width=8)  # type: ignore[assignment]
        with opened as backend:
            starts = [
                Start(
                    seq=seq,
                    parts=(Text(text="Answer in JSON."),),
                    max_tokens=512,
                    constraint=SchemaConstraint(schema=json.dumps(SCHEMAS[names[seq % 4]])),
                    sampling=Sampling(temperature=0.0 if seq < 2 else 1.0, seed=seq),
                    stream=seq == 3,
                )
                for seq in range(6)
            ]
            for seq, event in run_all(backend, starts).items():
                assert isinstance(event, Finished) and event.finish_reason == "stop", event
                assert validates(json.loads(event.text), SCHEMAS[names[seq % 4]]), event.text
                whole += 1
    print(f"{whole} answers under a schema, all whole")


_ENDLESS = {"$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}}}


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "true" + "}" * depth


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not list"),
        ("3", "not int"),
        ('{"type": "nothing"}', "nothing"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"$ref": "https://example.com/schema"}', "example.com"),
        (json.dumps(_ENDLESS | {"$ref": "#/$defs/a"}), "contains itself"),
        ('{"$ref": "#"}', ""),
        ('{"type": "string", "minLength": 5, "maxLength": 2}', "minLength"),
        ('{"type": "string", "minLength": 20000}', "20000"),
        ('{"type": "string", "pattern": "("}', "regex"),
        ('{"properties": {"a": 5}}', "schema must be"),
        ('{"required": "a"}', "required"),
        ('{"enum": []}', "Unsatisfiable"),
        ('{"not": {}}', "not"),
        (json.dumps({"enum": ["x" * 70_000]}), "65536"),
        (_nested(100), "nested deeper"),
        (_nested(2500), "recursion"),
        (
            json.dumps(
                {
                    "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {}},
                    "$ref": "#/$defs/d0",
                }
            ),
            "",
        ),
    ],
)
def test_wrong_schemas(schema: str, reason: str, grammars: Grammars) -> None:
    began_s = time.monotonic()
    with pytest.raises(SequenceError) as caught:
        grammars.matcher(SchemaConstraint(schema=schema), 500)
    assert caught.value.code == "schema_invalid" and reason in str(caught.value)
    assert time.monotonic() - began_s < 5


def test_references_that_fan_out(grammars: Grammars) -> None:
    """Two to the power of 30 strings: counted once for each definition, and the answer is cut short in time."""
    pair = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(30)}
    schema = {"$defs": pair | {"d30": _STRING}, "$ref": "#/$defs/d0"}
    assert validates(json.loads(write(grammars, schema, 300, random.Random(1))), schema)


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("(a{1,1000}){1,1000}", False),
        ("(x+x+)+y", False),
        ("([a-z]*[0-9]*){50}", False),
        ("a{100000}", True),
        ("a{5,}b{0,99999}", True),
        ("x" * 70_000, True),
        ("(", True),
        ("(?=x)y", True),
    ],
)
def test_patterns_that_explode(pattern: str, refused: bool, grammars: Grammars) -> None:
    began_s = time.monotonic()
    constraint: Constraint = RegexConstraint(pattern=pattern)
    if refused:
        with pytest.raises(SequenceError) as caught:
            grammars.matcher(constraint, 100)
        assert caught.value.code == "schema_invalid" and len(str(caught.value)) > 20
    else:
        Writer(grammars, constraint, 60).run(random.Random(1))
    assert time.monotonic() - began_s < 5
