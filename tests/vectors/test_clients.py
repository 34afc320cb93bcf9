"""The vectors for clients through the sync and the async client, against the scripted fake server.

`ClientSession` runs them sans IO in ``test_codec.py``; here every pending call has to end with the typed error, and
the client has to recover with its next one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import vlmd
from tests.vectors.cases import cases
from vlmd_protocol.fake_server import FakeServer, obedient, scripted
from vlmd_protocol.vectors import Case, to_bytes

INVALID = cases("invalid/lines")


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vlmd-v-", dir="/tmp"))
    yield folder / "s"
    shutil.rmtree(folder)


def server(path: Path, case: Case) -> FakeServer:
    # This client's `hello` has the id 1, so the call under test has the 2.
    data = to_bytes(case["line"]).replace(b'"id":1', b'"id":2') + b"\n"
    steps: list[dict[str, Any]] = [{"expect": "hello"}, {"answer": {}}, {"expect": "*"}]
    hostile = scripted([*steps, {"bytes": {"hex": data.hex()}}, {"stall": True}])
    return FakeServer(path, hostile, obedient())


@pytest.mark.parametrize("case", INVALID)
def test_sync_client(case: Case, path: Path) -> None:
    with server(path, case) as fake, vlmd.Client(socket=path, start=False) as client:
        with pytest.raises(vlmd.ProtocolError) as caught:
            match case["asked"]["1"]:
                case "describe_images":
                    client.describe_all(["/a.png"])
                case "generate":
                    client.generate("Hello").text()
                case _:
                    client.ping()
        assert caught.value.code == case["code"]
        assert client.ping().state == "ready"
        assert fake.complaints == []


@pytest.mark.parametrize("case", INVALID)
def test_async_client(case: Case, path: Path) -> None:
    async def call() -> None:
        async with vlmd.AsyncClient(socket=path, start=False) as client:
            with anyio.fail_after(10), pytest.raises(vlmd.ProtocolError) as caught:
                match case["asked"]["1"]:
                    case "describe_images":
                        await client.describe_all(["/a.png"])
                    case "generate":
                        await client.generate("Hello").text()
                    case _:
                        await client.ping()
            assert caught.value.code == case["code"]
            assert (await client.ping()).state == "ready"

    with server(path, case):
        anyio.run(call)
