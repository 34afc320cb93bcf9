"""The one socket folder, ``/tmp/vlmd-<uid>/``, and the checks that make it ours alone. Every client has this rule."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from vlmd_protocol.errors import UnsafeSocketError
from vlmd_protocol.limits import PROTOCOL_VERSION

# sockaddr_un holds 104 bytes on macOS and 108 on Linux, both with a closing zero; one rule for every platform.
MAX_SOCKET_PATH_BYTES: Final = 102

_FOLDER_MODE = 0o700


def socket_folder(uid: int | None = None) -> Path:
    """Return the folder of this user's sockets. `/tmp`, not `$TMPDIR`: macOS's is too long for a socket path."""
    return Path("/tmp") / f"vlmd-{os.geteuid() if uid is None else uid}"  # noqa: S108 - checked by `ensure_folder`


def shared_socket_path() -> Path:
    """Return the path of the user's shared daemon; it carries the protocol number."""
    return socket_folder() / f"shared-{PROTOCOL_VERSION}.sock"


def new_owned_socket_path() -> Path:
    """Return a path for a daemon that one process owns, not used before."""
    return socket_folder() / f"own-{os.getpid()}-{secrets.token_hex(4)}.sock"


def is_owned_socket(socket_path: Path) -> bool:
    """Whether `socket_path` was made by `new_owned_socket_path`."""
    return socket_path.parent == socket_folder() and socket_path.name.startswith("own-")


def lock_path(socket_path: Path) -> Path:
    """Return the path of the election lock; the file is never deleted."""
    return socket_path.with_name(f"{socket_path.name}.lock")


def check_length(socket_path: Path) -> None:
    """Refuse a path that `bind` would.

    Raises:
        UnsafeSocketError: it is over `MAX_SOCKET_PATH_BYTES`.
    """
    size = len(os.fsencode(socket_path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise UnsafeSocketError(
            f"The socket path has {size} bytes; at most {MAX_SOCKET_PATH_BYTES} work on every platform. "
            "Choose a shorter one with --socket or VLMD_SOCKET."
        )


def ensure_folder(folder: Path) -> None:
    """Create `folder` with mode 0700 if it is not there, and check it.

    Raises:
        UnsafeSocketError: it is no real directory, belongs to another user, or others may enter it.
    """
    try:
        folder.mkdir(mode=_FOLDER_MODE)
        folder.chmod(_FOLDER_MODE)  # the umask may have taken bits that the owner needs
    except FileExistsError:
        pass
    except OSError as error:
        raise UnsafeSocketError(f"Cannot create the socket folder {folder}: {error.strerror}.") from error
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """Check that `folder` is a directory (no symlink), ours, and closed to others.

    Raises:
        UnsafeSocketError: it is not; the message says what to do.
        FileNotFoundError: there is none.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no directory"
        raise UnsafeSocketError(f"The socket folder {folder} is {kind}. Remove it and start again.")
    if status.st_uid != os.geteuid():
        raise UnsafeSocketError(f"The socket folder {folder} belongs to user {status.st_uid}, not to you.")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise UnsafeSocketError(
            f"Others may enter the socket folder {folder} (mode {mode:04o}). Run: chmod 700 {folder}"
        )


def check_socket(socket_path: Path) -> None:
    """Check, before a client speaks, that `socket_path` is a socket of our own.

    Raises:
        UnsafeSocketError: it is no socket or belongs to another user.
        FileNotFoundError: there is none.
    """
    status = socket_path.lstat()
    if not stat.S_ISSOCK(status.st_mode):
        raise UnsafeSocketError(f"{socket_path} is not a socket. Remove it, or choose another path with --socket.")
    if status.st_uid != os.geteuid():
        raise UnsafeSocketError(f"The socket {socket_path} belongs to user {status.st_uid}, not to you.")
