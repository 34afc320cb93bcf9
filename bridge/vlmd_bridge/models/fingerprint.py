"""What a model's folder contains, as a digest: equal for equal weights, configuration and processor, whatever its name.

Hashing gigabytes takes seconds, so content is hashed once: a large file of Hugging Face's cache is named by its
content, and what was hashed is remembered by path, size, time and inode.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Read at a time: `hashlib` releases the interpreter's lock meanwhile.
_CHUNK_BYTES: Final = 4 * 1024 * 1024

_DIGEST_BYTES: Final = 16

# A large blob of Hugging Face's cache has its content's SHA-256 as its name. The small ones, with git's SHA-1, are
# read: people edit a configuration or a template in place, through the snapshot's link, and the name stays.
_BLOB: Final = re.compile(r"[0-9a-f]{64}")

# What explains a model to people changes no answer.
_NO_PART: Final = (".md", ".png", ".jpg", ".gitattributes", ".lock", ".txt.bak")


class ModelChanged(Exception):
    """A file is not the one that was there when the model began to load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStamp:
    """A file as the file system knows it: `path` is resolved, sizes in bytes."""

    name: str
    path: str
    size: int
    mtime_ns: int
    inode: int

    @property
    def identity(self) -> bytes:
        """What changes with the content."""
        return struct.pack("<qqQ", self.size, self.mtime_ns, self.inode)

    @property
    def blob(self) -> bytes | None:
        """The digest that is the file's name, in Hugging Face's cache."""
        path = Path(self.path)
        return path.name.encode() if path.parent.name == "blobs" and _BLOB.fullmatch(path.name) else None


def stamps(folder: Path) -> tuple[FileStamp, ...]:
    """Return the stamps of the files of a model, by name. Take them before the model loads.

    Raises:
        OSError: the folder cannot be read.
    """
    return tuple(_stamp(path) for path in sorted(folder.iterdir()) if path.is_file() and _is_part(path.name))


def fingerprint(files: tuple[FileStamp, ...], digest_of: Callable[[FileStamp], bytes]) -> bytes:
    """Return the digest of a model; `digest_of` gives that of a file which is not named by its content."""
    total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for file in files:
        for part in (file.name.encode(), file.blob or digest_of(file)):
            total.update(struct.pack("<I", len(part)) + part)
    return total.digest()


def hash_file(stamp: FileStamp) -> bytes:
    """Return the digest of the content of a file.

    Raises:
        ModelChanged: it is not the file of `stamp`.
        OSError: it cannot be read.
    """
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with open(stamp.path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        while data := file.read(_CHUNK_BYTES):
            found.update(data)
        after = os.fstat(file.fileno())
    for state in (before, after):
        if (state.st_size, state.st_mtime_ns, state.st_ino) != (stamp.size, stamp.mtime_ns, stamp.inode):
            raise ModelChanged(f"{stamp.path} has changed since the model was loaded")
    return found.digest()


def _stamp(path: Path) -> FileStamp:
    real = path.resolve()
    state = real.stat()
    return FileStamp(name=path.name, path=str(real), size=state.st_size, mtime_ns=state.st_mtime_ns, inode=state.st_ino)


def _is_part(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(_NO_PART)
