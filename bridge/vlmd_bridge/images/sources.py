"""From a path to the bytes behind it: opened once, regular files only, never blocking on a FIFO or a device."""

from __future__ import annotations

import errno
import os
import stat

from vlmd_bridge.images.errors import PictureError, shown

# O_NONBLOCK: opening a FIFO without a writer returns at once. O_NOCTTY: a terminal does not become ours.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# How much to ask for when a file turns out longer than it was, or the system returns less than asked.
_READ_BYTES = 16 * 1024 * 1024

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_source(path: str, *, max_bytes: int) -> bytes:
    """Return the whole file at the absolute `path`; a symlink counts as what it points to.

    Raises:
        PictureError: the path is relative, nothing is there, it is not a regular file, it cannot be read, it is empty
            or has more than `max_bytes` bytes.
    """
    if not path.startswith("/"):
        raise PictureError("image_path_relative", f"Not an absolute path: {shown(path)!r}. Send the full path.")
    try:
        # Looked at before it is opened: merely opening some devices has an effect (a watchdog starts, a tape rewinds).
        _refuse_unless_regular(os.stat(path), path, max_bytes)  # noqa: PTH116 - a Path would normalise the name
        fd = os.open(path, _OPEN_FLAGS)
        try:
            # Looked at again: the name may have been given to something else meanwhile.
            status = os.fstat(fd)
            _refuse_unless_regular(status, path, max_bytes)
            data = _read_all(fd, status.st_size, max_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise _from_os_error(error, path) from error
    except ValueError as error:
        # A NUL byte, or a surrogate that stands for no byte: no file can have that name.
        raise PictureError("image_not_found", f"File not found: {shown(path)} cannot be a file's name.") from error
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes)
    if not data:
        raise _empty(path)
    return data


def _refuse_unless_regular(status: os.stat_result, path: str, max_bytes: int) -> None:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "not a regular file")
        raise PictureError("image_not_a_file", f"Not a picture file but {kind}: {shown(path)}")
    if status.st_size == 0:
        # Also the files of /proc, some of which block when read.
        raise _empty(path)
    if status.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _read_all(fd: int, size_bytes: int, max_bytes: int) -> bytes:
    """Read to the end, or just beyond `max_bytes`: the file may have grown since it was looked at."""
    # One byte more than expected: the usual file takes one call that fills the buffer and one that finds the end.
    data = os.read(fd, size_bytes + 1)
    while len(data) <= max_bytes and (more := os.read(fd, min(_READ_BYTES, max_bytes + 1 - len(data)))):
        data += more
    return data


def _from_os_error(error: OSError, path: str) -> PictureError:
    reason = error.strerror or type(error).__name__
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return PictureError("image_not_found", f"File not found: {shown(path)}")
        case PermissionError():
            return PictureError("image_unreadable", f"No permission to read {shown(path)}. Let this user read it.")
        case _ if error.errno == errno.ENAMETOOLONG:
            return PictureError("image_not_found", f"File not found: the path is too long: {shown(path)}")
        case _:
            return PictureError("image_unreadable", f"Cannot read {shown(path)}: {reason}")


def _empty(path: str) -> PictureError:
    return PictureError("image_empty", f"The file has no bytes: {shown(path)}")


def _too_large(path: str, max_bytes: int) -> PictureError:
    return PictureError("image_too_large", f"The file has more than {max_bytes} bytes: {shown(path)}. Make it smaller.")
