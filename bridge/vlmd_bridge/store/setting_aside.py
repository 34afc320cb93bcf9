"""Whose file a store's path holds, and how a damaged one is set aside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Descriptions of somebody's screen.
FILE_MODE: Final = 0o600

# "vlmd", in the header of the file.
_APPLICATION_ID: Final = 0x766C6D64

# Counts up with the tables. A file of a higher number belongs to a newer vlmd and is left alone.
_FORMAT: Final = 1

# In the order of renaming: a log left beside a new file would be taken for its own.
_FILES: Final = ("-wal", "-shm", "")


class Unusable(Exception):
    """The file is not ours to write and not ours to move away; the message says whose it seems to be."""


def checked_identity(db: sqlite3.Connection) -> bool:
    """Whether the open file has our tables; False where it is new.

    Raises:
        Unusable: another program's, or a newer version's.
        sqlite3.DatabaseError: no database at all, or a damaged one.
    """
    db.execute("BEGIN")  # one look: another process may be making the tables
    try:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        application = int(db.execute("PRAGMA application_id").fetchone()[0])
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
    finally:
        db.rollback()
    if application == 0 and version == 0 and not tables:
        return False
    if application != _APPLICATION_ID:
        raise Unusable("it is a database of another program; choose another path")
    if version > _FORMAT:
        raise Unusable(f"it has the format {version} of a newer vlmd; this one writes {_FORMAT}")
    if not {"results", "weights"} <= tables:
        raise sqlite3.DatabaseError("its tables are missing")
    return True


def mark_as_ours(db: sqlite3.Connection) -> None:
    """Write who made the file and in which format; in the transaction that makes its tables."""
    db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={_FORMAT}")


def set_aside(path: Path, inode: int | None) -> Path | None:
    """Rename a damaged store, in place of one set aside before; return its new path.

    None where the file at `path` is no longer the one of `inode`: another process was first.

    Raises:
        OSError: it cannot be renamed.
    """
    with _lock(path):
        try:
            if inode is not None and path.stat().st_ino != inode:
                return None
        except FileNotFoundError:
            return None
        for suffix in _FILES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").replace(f"{path}.damaged{suffix}")
        return Path(f"{path}.damaged")


def remove_set_aside(path: Path) -> None:
    """Delete what `set_aside` has left."""
    for suffix in _FILES:
        with contextlib.suppress(OSError):
            Path(f"{path}.damaged{suffix}").unlink()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
