"""Whose file a store's path holds, and how a damaged one is set aside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Descriptions of somebody's screen.
FILE_MODE: Final = 0o600

# "vlmd", in the header of the file.
_APPLICATION_ID: Final = 0x766C6D64

# https://www.sqlite.org/fileformat2.html, "The Database Header": its first bytes, and where it has who made the file.
_HEADER: Final = b"SQLite format 3\0"
_APPLICATION_ID_AT: Final = slice(68, 72)

# Counts up with the tables. A file of a higher number belongs to a newer vlmd and is left alone.
_FORMAT: Final = 1

# In the order of renaming: a log left beside a new file would be taken for its own.
_FILES: Final = ("-wal", "-shm", "")


_ANOTHER_PROGRAM: Final = "it is a database of another program; choose another path"


class Unusable(Exception):
    """The file is not ours to write and not ours to move away; the message says whose it seems to be."""


def check_owner(fd: int) -> None:
    """Check by its first bytes that the file of `fd` is a store or empty.

    SQLite is not asked: to open another program's database can be to change it, and to fail at a file that is no
    database looks like damage of ours.

    Raises:
        Unusable: it is somebody else's, or no file.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Unusable("it is no file; choose another path")
    header = os.pread(fd, _APPLICATION_ID_AT.stop, 0)
    if not header:
        return
    if not header.startswith(_HEADER):
        raise Unusable("it is no result store; choose another path, or remove it if it was one")
    if header[_APPLICATION_ID_AT] != _APPLICATION_ID.to_bytes(4, "big"):
        raise Unusable(_ANOTHER_PROGRAM)


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
        raise Unusable(_ANOTHER_PROGRAM)
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
        Unusable: it does not begin as ours, so that nobody could tell that it may be removed later.
        OSError: it cannot be renamed.
    """
    with _lock(path):
        try:
            if inode is not None and path.stat().st_ino != inode:
                return None
            _check_owner_at(path)
        except FileNotFoundError:
            return None
        for suffix in _FILES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").replace(f"{path}.damaged{suffix}")
        return Path(f"{path}.damaged")


def remove_set_aside(path: Path) -> None:
    """Delete what `set_aside` has left, and nobody else's file of that name."""
    try:
        _check_owner_at(Path(f"{path}.damaged"))
    except FileNotFoundError:
        pass  # a process that ended while it renamed has left a log alone
    except (Unusable, OSError):
        return
    for suffix in _FILES:
        with contextlib.suppress(OSError):
            Path(f"{path}.damaged{suffix}").unlink()


def _check_owner_at(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        check_owner(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
