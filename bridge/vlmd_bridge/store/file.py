"""The store's file: results by key, least recently used out first, and what is known of weight files.

Synchronous and for one thread. Several processes may have the file open at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vlmd_bridge.models.fingerprint import FileStamp
from vlmd_bridge.store.bounds import Bounds
from vlmd_bridge.store.setting_aside import FILE_MODE, check_owner, checked_identity, mark_as_ours

# Another process commits within milliseconds; who waits longer than this has been locked out.
_BUSY_TIMEOUT_S: Final = 0.25

# A hit is noted at most so often: a lookup then rarely writes.
_TOUCH_EVERY_S: Final = 3600.0

# When the file is over its bound, this much is removed at once, so that it is not over again with the next result.
_EVICT_TO: Final = 0.9

# Rows of one deletion: bounds how long a transaction holds the write lock.
_EVICT_ROWS: Final = 500

_CHECK_BYTES: Final = 8

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value BLOB NOT NULL, used_s INTEGER NOT NULL) "
    "WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS results_by_use ON results (used_s)",
    "CREATE TABLE IF NOT EXISTS weights (path TEXT PRIMARY KEY, stamp BLOB NOT NULL, digest BLOB NOT NULL) "
    "WITHOUT ROWID",
)


class StoreFile:
    """An open store. Every method may raise `sqlite3.Error`; `store.keeper` knows what each means."""

    def __init__(self, path: Path, bounds: Bounds, *, now_s: Callable[[], float] = time.time) -> None:
        """Open the file at `path`, made with mode 0600 if need be, and evict what is over `bounds`.

        Raises:
            Unusable: it belongs to another program or to a newer version.
            OSError, sqlite3.Error: it cannot be opened.
        """
        self._bounds = bounds
        self._now_s = now_s
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here rather than by SQLite, which knows no mode; the files beside it take over this one's.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            check_owner(fd)
            os.fchmod(fd, FILE_MODE)
            self.inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
            with contextlib.suppress(sqlite3.OperationalError):  # locked or full: it can still be read
                self.evict()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        known = checked_identity(self._db)
        # Deleted text is overwritten, not merely unlinked from the tree.
        self._db.execute("PRAGMA secure_delete=ON")
        if not known:
            self._make()
        self._db.execute("PRAGMA journal_mode=WAL")
        # A killed process loses nothing that was committed; only a power cut may cost the last results.
        self._db.execute("PRAGMA synchronous=NORMAL")

    def _make(self) -> None:
        """Make the tables: before there is a log, since `check_owner` looks for our mark in the file itself.

        In one transaction with `auto_vacuum`, which by itself would write a page without the mark. Not an IMMEDIATE
        one: that begins with the page, after which it is too late for `auto_vacuum`.
        """
        with self._transaction("BEGIN"):
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            for statement in _SCHEMA:
                self._db.execute(statement)
            mark_as_ours(self._db)

    def close(self) -> None:
        """Close it; what was committed stays."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None where there is none or it is not what was written."""
        row = self._db.execute("SELECT value, used_s FROM results WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        value, used_s = row
        now_s = self._now_s()
        if not (isinstance(value, bytes) and isinstance(used_s, int)):
            raise sqlite3.DatabaseError("a value is not what was written")
        if now_s - used_s > self._bounds.max_age_s:
            return None
        if value[:_CHECK_BYTES] != _check(key, value[_CHECK_BYTES:]):
            # SQLite has no checksums of its own: a damaged page can still be a well-formed one.
            raise sqlite3.DatabaseError("a value is not what was written")
        if now_s - used_s > _TOUCH_EVERY_S:
            with contextlib.suppress(sqlite3.OperationalError):  # locked or full: what was read is still good
                self._db.execute("UPDATE results SET used_s=? WHERE key=?", (int(now_s), key))
        return bytes(value[_CHECK_BYTES:])

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep values by key, all or none."""
        now_s = int(self._now_s())
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?)",
                [(key, _check(key, value) + value, now_s) for key, value in items],
            )

    def evict(self) -> None:
        """Remove what is over the bounds: the old, then the least recently used."""
        self._delete_old(int(self._now_s() - self._bounds.max_age_s))
        if self._live_bytes() <= self._bounds.max_bytes:
            return
        keep_bytes = self._bounds.max_bytes * _EVICT_TO
        while (live := self._live_bytes()) > keep_bytes and (count := self.count()):
            rows = min(_EVICT_ROWS, 1 + int(count * (1 - keep_bytes / live)))
            with self._transaction():
                self._db.execute(
                    "DELETE FROM results WHERE key IN (SELECT key FROM results ORDER BY used_s LIMIT ?)", (rows,)
                )
        self._shrink()

    def clear(self) -> int:
        """Remove everything, for good, and give the space back; return how many results there were."""
        with self._transaction():
            count = self._db.execute("DELETE FROM results").rowcount
            self._db.execute("DELETE FROM weights")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(count)

    def count(self) -> int:
        """Return how many results there are."""
        return int(self._db.execute("SELECT count(*) FROM results").fetchone()[0])

    def weights_digest(self, stamp: FileStamp) -> bytes | None:
        """Return the digest of a file of this path, size, time and inode, if it was hashed before."""
        row = self._db.execute("SELECT stamp, digest FROM weights WHERE path=?", (stamp.path,)).fetchone()
        if row is None or row[0] != stamp.identity or not isinstance(row[1], bytes):
            return None
        return row[1]

    def keep_weights_digests(self, digests: Iterable[tuple[FileStamp, bytes]]) -> None:
        """Remember the digests of files."""
        rows = [(stamp.path, stamp.identity, digest) for stamp, digest in digests]
        if rows:
            with self._transaction():
                self._db.executemany("INSERT OR REPLACE INTO weights VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _delete_old(self, before_s: int) -> None:
        if self._db.execute("SELECT 1 FROM results WHERE used_s<? LIMIT 1", (before_s,)).fetchone() is None:
            return
        with self._transaction():
            self._db.execute("DELETE FROM results WHERE used_s<?", (before_s,))
        self._shrink()

    def _shrink(self) -> None:
        # It yields a row without columns for each page, which `execute` takes for the end.
        self._db.executescript("PRAGMA incremental_vacuum")
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _live_bytes(self) -> int:
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size


def _check(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_CHECK_BYTES, key=key).digest()
