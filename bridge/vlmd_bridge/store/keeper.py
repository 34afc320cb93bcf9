"""What the store's thread does: opens the file when it is first needed, and lives with whatever is wrong with it.

Nothing raises out of here: a file that is damaged is set aside, one that is locked, full or not writable is left alone
for a while, and the reason is kept for people.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from vlmd_bridge import faults
from vlmd_bridge.store.bounds import Bounds
from vlmd_bridge.store.file import StoreFile
from vlmd_bridge.store.identity import ModelIdentity
from vlmd_bridge.store.setting_aside import Unusable, remove_set_aside, set_aside
from vlmd_protocol.messages import CacheState

log = logging.getLogger("vlmd.store")

_T = TypeVar("_T")

# How long the store is left alone after something that passes by itself: a lock, a full disk, a folder without rights.
_REST_S: Final = 5.0

# Results are written before the rest of a batch is looked at; sizes are looked at every so many of them.
_EVICT_EVERY: Final = 256

# What could not be written waits for the file to be usable again: a few megabytes at most.
_MAX_WAITING: Final = 2000

# A file that is damaged again and again is on a disk that is.
_MAX_SET_ASIDE: Final = 3


class Keeper:
    """The open file, or why there is none. For one thread.

    Attributes:
        state: as `cache` and `status` show it.
        warning: why the state is what it is, None while all is well; after damage, what was done about it.
        stored: results written.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.state: CacheState = "unused"
        self.warning: str | None = None
        self.stored = 0
        self._path = path
        self._bounds = bounds
        self._file: StoreFile | None = None
        self._rest_until_s = 0.0
        self._write_again_s = 0.0
        self._set_aside = 0
        self._since_eviction = 0
        self._waiting: dict[bytes, bytes] = {}
        self._at_read = faults.point("store", "read")
        self._at_write = faults.point("store", "write")

    def get(self, model: ModelIdentity, request: bytes) -> bytes | None:
        """Return what is kept for `request` of `model`."""

        def read(file: StoreFile) -> bytes | None:
            if self._at_read is not None:
                self._at_read()
            if (key := model.key(request, file)) is None:
                return None
            # What waits to be written is known all the same.
            return file.get(key) if (value := self._waiting.get(key)) is None else value

        return self._try(read, None)

    def put(self, items: Sequence[tuple[ModelIdentity, bytes, bytes]]) -> None:
        """Keep values; those that cannot be written now wait, but not where the store cannot even be opened or read."""

        def write(file: StoreFile) -> None:
            for model, request, value in items:
                if (key := model.key(request, file)) is not None:
                    self._waiting[key] = value

        if items:
            self._try(write, None)
            self.flush()
        while len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def clear(self) -> int | None:
        """Remove everything, also what waits and what was set aside; return how many results, None if it failed."""
        self._waiting.clear()
        self._rest_until_s = self._write_again_s = 0.0
        remove_set_aside(self._path)
        self._look_for_another_file()
        if self._is_absent():
            return 0
        return self._try(lambda file: file.clear(), None)

    def count(self) -> int | None:
        """Return how many results there are, None where it cannot be told."""
        self._look_for_another_file()
        return 0 if self._is_absent() else self._try(lambda file: file.count(), None)

    def flush(self) -> None:
        """Write what waits, if that is possible now."""
        if self._waiting and time.monotonic() >= self._write_again_s:
            self._try(self._write, None, writes=True)

    def close(self) -> None:
        """Write what waits and close the file."""
        self.flush()
        self._close_file()

    @property
    def bytes_on_disk(self) -> int:
        """What the file and its log take."""
        total = 0
        for suffix in ("", "-wal"):
            try:
                total += Path(f"{self._path}{suffix}").stat().st_size
            except OSError:
                continue
        return total

    # --- inside -----------------------------------------------------------------------------------------------

    def _write(self, file: StoreFile) -> None:
        if self._at_write is not None:
            self._at_write()
        file.put(list(self._waiting.items()))
        self.stored += len(self._waiting)
        self._since_eviction += len(self._waiting)
        self._waiting.clear()
        if self._since_eviction >= _EVICT_EVERY:
            self._since_eviction = 0
            file.evict()
            self._look_for_another_file()

    def _try(self, act: Callable[[StoreFile], _T], otherwise: _T, *, writes: bool = False) -> _T:
        if self.state == "off" or time.monotonic() < self._rest_until_s:
            return otherwise
        try:
            if self._file is None:
                self._file = StoreFile(self._path, self._bounds)
            found = act(self._file)
        except Unusable as error:
            self._turn_off(str(error))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table: nothing else makes our statements wrong
                self._damaged(error)
            else:
                self._rest(str(error), writes=writes and self._file is not None)
        except (sqlite3.DatabaseError, UnicodeError) as error:
            self._damaged(error)
        except OSError as error:
            self._rest(error.strerror or str(error))
        else:
            if self.state == "unused" or (self.state == "degraded" and (writes or not self._waiting)):
                self._well()
            return found
        return otherwise

    def _well(self) -> None:
        if self.state == "degraded":
            log.info("the result store %s is used again", self._path)
            self.warning = None
        self.state = "ready"

    def _rest(self, why: str, *, writes: bool = False) -> None:
        if writes:  # a full disk can still be read
            self._write_again_s = time.monotonic() + _REST_S
        else:
            self._rest_until_s = time.monotonic() + _REST_S
        what = "written" if writes else "used"
        warning = f"The result store {self._path} cannot be {what} for now: {why}."
        if self.warning != warning:
            log.warning("%s Jobs run without it.", warning)
        self.state, self.warning = "degraded", warning

    def _damaged(self, error: Exception) -> None:
        inode = None if self._file is None else self._file.inode
        self._close_file()
        self._set_aside += 1
        if self._set_aside > _MAX_SET_ASIDE:
            self._turn_off(f"it was damaged {self._set_aside} times")
            return
        try:
            aside = set_aside(self._path, inode)
        except Unusable as stranger:  # written over since it was opened
            self._turn_off(str(stranger))
            return
        except OSError as failure:
            self._turn_off(f"it is damaged ({error}) and cannot be set aside: {failure.strerror}")
            return
        if aside is not None:
            self.warning = f"The result store {self._path} was damaged ({error}); it was set aside as {aside.name}."
            log.warning("%s A new one is begun.", self.warning)

    def _turn_off(self, why: str) -> None:
        self._close_file()
        self.state = "off"
        self.warning = f"The result store {self._path} is not used: {why}."
        log.warning("%s Jobs run without it.", self.warning)

    def _look_for_another_file(self) -> None:
        """Close the open file where the path has another one by now, or none: set aside by a process, or removed."""
        if self._file is None:
            return
        try:
            if self._path.stat().st_ino == self._file.inode:
                return
        except OSError:
            pass  # what is wrong shows when it is opened again
        self._close_file()

    def _is_absent(self) -> bool:
        """Whether there is no file, which then is not made for a look; what else is wrong shows when it is opened."""
        try:
            self._path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
