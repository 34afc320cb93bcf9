"""Types as schemas: what the daemon gets, what the caller gets back, and what is refused before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest

import vlmd
from tests.support.fake_server import Conversation, FakeServer, batch_lines, generate_lines, hello_then
from vlmd._schema import Schema, schema_of

Serve = Callable[..., FakeServer]


class Window(msgspec.Struct):
    title: Annotated[str, msgspec.Meta(max_length=40)]
    focused: bool = False


class Screen(msgspec.Struct):
    """What a screen shows."""

    windows: list[Window]
    main: Window
    kind: Literal["code", "chat"]
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    day: date


@dataclass
class Point:
    x: int
    y: int


class Named(TypedDict):
    name: str


class Tree(msgspec.Struct):
    name: str
    children: list[Tree] = []


class Model:
    """What the client relies on of a pydantic model."""

    def __init__(self, n: int) -> None:
        self.n = n

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"type": "integer"}}}

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> Model:
        if value["n"] < 0:
            raise ValueError("n is negative")
        return cls(value["n"])


SCREEN = {
    "windows": [{"title": "a", "focused": True}],
    "main": {"title": "b"},
    "kind": "code",
    "share": 0.5,
    "day": "2026-02-03",
}
SCREEN_VALUE = Screen(windows=[Window("a", True)], main=Window("b"), kind="code", share=0.5, day=date(2026, 2, 3))


@pytest.fixture
def client(folder: Path) -> Iterator[vlmd.Client]:
    with vlmd.Client(socket=folder / "s", start=False) as made:
        yield made


def found(schema: object) -> Schema[Any]:
    result = schema_of(schema)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("schema", "record", "value"),
    [
        (Screen, SCREEN, SCREEN_VALUE),
        (Point, {"x": 1, "y": 2}, Point(1, 2)),
        (Named, {"name": "a"}, {"name": "a"}),
        (list[Point], [{"x": 1, "y": 2}], [Point(1, 2)]),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (Literal["a", "b"], "b", "b"),
        (int | None, None, None),
        (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
        ({"type": "object"}, {"x": 1}, {"x": 1}),
    ],
)
def test_a_type_and_its_value(schema: object, record: object, value: object) -> None:
    assert found(schema).value_of(record) == value
    assert found(schema).value_of_text(json.dumps(record)) == value


def test_references_are_replaced_and_constraints_kept() -> None:
    document = found(Screen).document
    window = {
        "title": "Window",
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 40}, "focused": {"type": "boolean", "default": False}},
        "required": ["title"],
    }
    assert document["properties"] == {
        "windows": {"type": "array", "items": window},
        "main": window,
        "kind": {"enum": ["chat", "code"]},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "day": {"type": "string", "format": "date"},
    }
    assert (document["title"], document["description"]) == ("Screen", "What a screen shows.")
    assert "$defs" not in document
    assert found(Model).document == {"type": "object", "properties": {"n": {"type": "integer"}}}


def test_a_recursive_type_keeps_its_references() -> None:
    document = found(list[Tree]).document
    assert document["items"] == {"$ref": "#/$defs/Tree"}
    assert document["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_a_type_that_would_outgrow_the_limit_keeps_them_too() -> None:
    member: Any = str
    for depth in range(6):
        member = msgspec.defstruct(f"Level{depth}", [(f"a_rather_long_name_{at}", member) for at in range(8)])
    document = found(member).document
    assert len(msgspec.json.encode(document)) < 65_536
    assert document["$ref"] == "#/$defs/Level5"


def test_a_dict_is_sent_as_it_is() -> None:
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "integer"}}}
    assert found(schema).document == schema


@pytest.mark.parametrize(
    "schema",
    [3, "Screen", "{}", Screen.__init__, object, Conversation, Screen.__new__, b"{}", [Screen], True, Callable],
)
def test_what_cannot_be_a_schema(client: vlmd.Client, schema: object) -> None:
    with pytest.raises(TypeError, match="`schema` takes a JSON Schema"):
        client.generate("p", schema=schema)
    with pytest.raises(TypeError, match="`schema` takes a JSON Schema"):
        client.describe(["/a.png"], schema=schema)


@pytest.mark.parametrize("schema", [{"a": object()}, {(1,): 1}, {"a": {Screen}}, {"a": "\ud800"}])
def test_a_dict_that_is_no_json(client: vlmd.Client, schema: object) -> None:
    with pytest.raises(TypeError, match="no JSON"):
        client.generate("p", schema=schema)


def test_a_dict_that_contains_itself(client: vlmd.Client) -> None:
    schema: dict[str, Any] = {}
    schema["not"] = schema
    with pytest.raises(TypeError, match="no JSON"):
        client.generate("p", schema=schema)


def answers(text: str, finish_reason: str = "stop") -> Callable[[Conversation], None]:
    def play(talk: Conversation) -> None:
        for request in talk.lines():
            for line in generate_lines(request, text, finish_reason=finish_reason):
                talk.line(**line)

    return hello_then(play)


def test_generate_returns_an_instance(serve: Serve, client: vlmd.Client) -> None:
    server = serve(answers(json.dumps(SCREEN)))
    generation = client.generate("p", schema=Screen)
    assert generation.value() == SCREEN_VALUE
    assert generation.result is not None
    assert generation.result.value == SCREEN_VALUE
    assert server.received[-1]["params"]["schema"] == found(Screen).document
    assert client.generate("p", schema={"type": "object"}).value() == SCREEN


@pytest.mark.anyio
async def test_the_async_client_does_too(serve: Serve, folder: Path) -> None:
    serve(answers('{"x": 1, "y": 2}'))
    async with vlmd.AsyncClient(socket=folder / "s", start=False) as client:
        assert await client.generate("p", schema=Point).value() == Point(1, 2)


@pytest.mark.parametrize(
    ("text", "finish_reason", "code", "match"),
    [
        ('{"x": 1, "y', "length", "truncated", "max_tokens ended the text"),
        ('{"x": 1}', "stop", "unparsed", "`y`"),
        ("nothing", "stop", "unparsed", "not JSON"),
    ],
)
def test_a_text_that_is_not_of_the_type(
    serve: Serve, client: vlmd.Client, text: str, finish_reason: str, code: str, match: str
) -> None:
    serve(answers(text, finish_reason))
    generation = client.generate("p", schema=Point)
    assert generation.text() == text
    with pytest.raises(vlmd.InvalidRequestError, match=match) as caught:
        generation.value()
    assert caught.value.code == code
    assert generation.result is not None
    assert generation.result.value is None
    assert generation.result.value_error == str(caught.value)


def test_describe_returns_instances_and_a_misfit_fails_alone(serve: Serve, client: vlmd.Client) -> None:
    def play(talk: Conversation) -> None:
        request = talk.expect("describe_images")
        assert request["params"]["schema"] == found(Model).document
        for line in batch_lines(request):
            line["results"][0]["record"] = {"n": 7}
            line["results"][1]["record"] = {"n": -7}
            line["results"][2] |= {"error": "no such file", "code": "image_not_found"}
            talk.line(**line)
        talk.stall()

    serve(hello_then(play))
    good, misfit, failed = client.describe_all(["/a.png", "/b.png", "/c.png"], schema=Model)
    assert good.ok
    assert good.value is not None
    assert good.value.n == 7
    assert good.record == {"n": 7}
    assert (misfit.ok, misfit.value, misfit.code) == (False, None, "unparsed")
    assert "n is negative" in str(misfit.error)
    assert misfit.record == {"n": -7}
    assert (failed.code, failed.value) == ("image_not_found", None)


def test_a_model_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", n=(int, pydantic.Field(ge=1)))
    outer = pydantic.create_model("Outer", first=(inner, ...))
    schema = found(outer)
    assert schema.document["properties"]["first"]["properties"]["n"]["minimum"] == 1
    value = schema.value_of_text('{"first": {"n": 1}}')
    assert isinstance(value, outer)
    with pytest.raises(Exception, match="greater than or equal to 1"):
        schema.value_of_text('{"first": {"n": 0}}')
