"""The result store, for the prompts of one job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from vlmd_bridge.jobs.work import Request
from vlmd_bridge.store.identity import ModelIdentity, request_digest
from vlmd_bridge.store.results import ResultStore
from vlmd_bridge.workers.messages import EngineInfo, Start
from vlmd_protocol.messages import FrameResult


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The text of one frame: what of a `FrameResult` depends on the picture and the prompt."""

    description: str
    activity: str
    apps: list[str]
    topics: list[str]
    record: Any = None

    @classmethod
    def of(cls, result: FrameResult) -> StoredRecord:
        """Return what is kept of `result`."""
        return cls(
            description=result.description,
            activity=result.activity,
            apps=result.apps,
            topics=result.topics,
            record=result.record,
        )

    def fill(self, result: FrameResult) -> FrameResult:
        """Return `result`, which has the frame's own index, time and path, with this text."""
        return msgspec.structs.replace(
            result,
            description=self.description,
            activity=self.activity,
            apps=self.apps,
            topics=self.topics,
            record=self.record,
        )


_decoder = msgspec.json.Decoder(list[StoredRecord])


class Engine(Protocol):
    """Whose answers are kept."""

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded."""

    @property
    def identity(self) -> ModelIdentity:
        """The files it was loaded from."""


class JobStore:
    """Looks up what an engine has answered before, and keeps what it answers now."""

    def __init__(self, store: ResultStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine

    def request(self, start: Start, digests: dict[int, bytes]) -> Request | None:
        """Return what the result of `start` is kept under; `digests` are its pictures', by their place.

        None before the engine is ready.
        """
        engine = self._engine
        return None if engine.info is None else Request(engine.identity, request_digest(start, digests, engine.info))

    def look_up(self, request: Request, count: int, answer: Callable[[list[StoredRecord] | None], None]) -> None:
        """Have `answer` called with the records of `count` frames, or None."""
        self._store.look_up(request.model, request.digest, lambda value: answer(_read(value, count)))

    def keep(self, request: Request, results: Sequence[FrameResult]) -> None:
        """Keep the valid results of a prompt's frames, unless the engine was started again since `request`."""
        if request.model is not self._engine.identity:
            return  # it may have loaded other files
        value = msgspec.json.encode([StoredRecord.of(result) for result in results])
        self._store.keep(request.model, request.digest, value)


def _read(value: bytes | None, count: int) -> list[StoredRecord] | None:
    if value is None:
        return None
    try:
        records = _decoder.decode(value)
    except msgspec.DecodeError:
        return None
    return records if len(records) == count else None
