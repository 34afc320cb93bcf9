"""What type checkers infer. mypy checks this file with the rest; run, it only needs to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, assert_type

import msgspec

import vlmd


class Struct(msgspec.Struct):
    n: int


@dataclass
class Record:
    n: int


class Named(TypedDict):
    name: str


def sync(client: vlmd.Client) -> None:
    assert_type(client.generate("p"), vlmd.Generation[None])
    assert_type(client.generate("p", schema=Struct), vlmd.Generation[Struct])
    assert_type(client.generate("p", schema=Struct).value(), Struct)
    assert_type(client.generate("p", schema=Record).finish().value, Record | None)
    assert_type(client.generate("p", schema=Named).value(), Named)
    assert_type(client.generate("p", schema=list[Record]).value(), list[Record])
    assert_type(client.generate("p", schema={"type": "object"}).value(), Any)
    assert_type(client.generate("p", schema=Literal["a", "b"], temperature=0.5).value(), Any)
    for text in client.generate([vlmd.Message("user", "p")], images=["a.png"]):
        assert_type(text, str)
    for delta in client.generate([{"role": "user", "content": "p"}]).deltas():
        assert_type(delta, vlmd.Delta)
    for batch in client.describe(["a.png"], schema=Struct, batch_size=2):
        assert_type(batch, vlmd.Batch[Struct])
        assert_type(batch.results[0].value, Struct | None)
    assert_type(client.describe_all(["a.png"], schema={"type": "object"}), list[vlmd.Frame[Any]])
    frames: list[vlmd.Frame] = client.describe_all(["a.png"])  # whoever needs no type need not say so
    assert_type(frames[0].description, str)
    assert_type(client.count_tokens("p").fits, bool)


async def asynchronous(client: vlmd.AsyncClient) -> None:
    assert_type(client.generate("p"), vlmd.AsyncGeneration[None])
    assert_type(await client.generate("p", schema=Struct).value(), Struct)
    assert_type((await client.generate("p", schema=Record).finish()).value, Record | None)
    async for text in client.generate("p"):
        assert_type(text, str)
    async for batch in client.describe(["a.png"], schema=Struct):
        assert_type(batch.results[0].value, Struct | None)
    assert_type(await client.describe_all(["a.png"], schema=Record), list[vlmd.Frame[Record]])
    assert_type(await client.count_tokens("p"), vlmd.CountResult)


def test_generics_subscript_at_run_time() -> None:
    assert vlmd.Generation[Struct] is not None
    assert vlmd.AsyncGeneration[Struct] is not None
    assert vlmd.Batches[Struct] is not None
    assert vlmd.Frame[Struct] is not None
