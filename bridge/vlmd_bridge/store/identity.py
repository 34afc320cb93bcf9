"""Which model a result is of, and the key of a result."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from vlmd_bridge import __version__
from vlmd_bridge.models.fingerprint import FileStamp, ModelChanged, fingerprint, hash_file, stamps
from vlmd_bridge.store.file import StoreFile
from vlmd_bridge.workers.messages import ConfigureEngine, EngineInfo, ImageSpec, Picture, Start, Text, Turn

log = logging.getLogger("vlmd.store")

# Counts up when the same answer of an engine is read into another result than before.
_MEANING: Final = 1

_KEY_BYTES: Final = 32

# Options of the fake backend that say how long it takes or when it fails, not what it answers.
_NO_ANSWER: Final = ("load_s", "step_ms", "width", "fault")


class ModelIdentity:
    """What a model's folder held before it was loaded. Its digest is made when it is first asked for."""

    def __init__(self, config: ConfigureEngine) -> None:
        """Look at the files' sizes and times; nothing is read."""
        self._digest: bytes | None = None
        self._files: tuple[FileStamp, ...] = ()
        self._unknown = False
        if config.backend == "fake":
            options = [pair for pair in config.path.split(",") if pair and not pair.startswith(_NO_ANSWER)]
            self._digest = ",".join(["fake", *sorted(options)]).encode()
            return
        try:
            self._files = stamps(Path(config.path))
        except OSError as error:
            self._give_up(str(error))

    def key(self, request: bytes, file: StoreFile) -> bytes | None:
        """Return the key of a result, None where it cannot be told which model it would be of. May take seconds, once.

        Raises:
            sqlite3.Error: the store's file failed.
        """
        if self._digest is None and not self._unknown:
            self._digest = self._read(file)
        if self._digest is None:
            return None
        return hashlib.blake2b(request, digest_size=_KEY_BYTES, key=hashlib.sha256(self._digest).digest()).digest()

    def _read(self, file: StoreFile) -> bytes | None:
        fresh: list[tuple[FileStamp, bytes]] = []

        def digest_of(stamp: FileStamp) -> bytes:
            if (known := file.weights_digest(stamp)) is not None:
                return known
            fresh.append((stamp, hash_file(stamp)))
            return fresh[-1][1]

        try:
            digest = fingerprint(self._files, digest_of)
        except (ModelChanged, OSError) as error:
            self._give_up(str(error))
            return None
        # Locked or full: a pity for the next process, not for this one, which has its digest.
        with contextlib.suppress(sqlite3.OperationalError):
            file.keep_weights_digests(fresh)
        return digest

    def _give_up(self, why: str) -> None:
        self._unknown = True
        log.warning("no results of this model are kept: %s", why)


class _Seen(msgspec.Struct, frozen=True, tag="seen"):
    """A picture, by what was decoded to it."""

    digest: bytes
    width: int
    height: int


class _Asked(msgspec.Struct, frozen=True):
    """All that an answer depends on, but the model's files."""

    meaning: int
    version: str
    versions: dict[str, str]
    backend: str
    dtype: str
    context_tokens: int
    image_spec: ImageSpec | None
    parts: list[Text | _Seen]
    history: tuple[Turn, ...]
    rest: Start


def request_digest(start: Start, digests: dict[int, bytes], info: EngineInfo) -> bytes:
    """Return the digest of what the engine would be told, with its pictures by their content.

    Args:
        start: prompt, labels, mode, budget, constraint, sampling; not its `seq`, `front` or the pictures' places.
        digests: by the place of each picture in the arena, the digest of the bytes that were decoded.
        info: of the engine: versions and image spec.
    """
    parts: list[Text | _Seen] = [
        _Seen(digests[part.offset], part.width, part.height) if isinstance(part, Picture) else part
        for part in start.parts
    ]
    asked = _Asked(
        meaning=_MEANING,
        version=__version__,
        versions=dict(sorted(info.versions.items())),
        backend=info.backend,
        dtype=info.dtype,
        context_tokens=info.context_tokens,
        image_spec=info.image_spec,
        parts=parts,
        history=start.history,
        rest=msgspec.structs.replace(start, seq=0, parts=(), history=(), front=False),
    )
    return hashlib.blake2b(msgspec.msgpack.encode(asked), digest_size=_KEY_BYTES).digest()
