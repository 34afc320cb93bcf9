"""Who listens: one lock for life, and a socket that only its holder binds and unlinks.

`flock` on ``<socket>.lock`` decides. Probing the socket and unlinking it when nobody answers leaves two listeners
now and then; a lock that the kernel drops with its holder does not. The lock file is never deleted, since two starters
could then hold locks on two files of the same name. Where somebody else deletes it, what lies there decides: its holder
takes that too, or gives way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from pathlib import Path

from vlmd_protocol import paths
from vlmd_protocol.errors import UnsafeSocketError

# Clients that connect while the daemon is busy accepting wait here.
_BACKLOG = 256

# The socket is the owner's alone from the moment it exists.
_PRIVATE_UMASK = 0o177

# Between creating its lock and taking it a daemon does nothing else.
_SWEEP_AGE_S = 60.0


class LostElection(Exception):
    """Another daemon holds the lock of `path`. `pid` is what it wrote there, 0 if unreadable."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"Another daemon (pid {pid}) listens at {path}.")
        self.path = path
        self.pid = pid


class Election:
    """Holds the lock of a socket path from construction until `close`."""

    def __init__(self, socket_path: Path) -> None:
        """Take the lock.

        Raises:
            LostElection: another daemon has it.
            UnsafeSocketError: the path is too long, or its folder is not ours alone.
        """
        self.path = socket_path
        paths.check_length(socket_path)
        self._fd = _take_lock(socket_path)

    @property
    def holds_lock(self) -> bool:
        """Whether the file at the lock's path is the one that we hold: somebody may have unlinked or replaced it."""
        try:
            there = paths.lock_path(self.path).lstat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def ensure_lock(self) -> None:
        """Take the lock at its path where that is no longer ours; whoever starts goes by the file that lies there.

        Raises:
            LostElection: another daemon has it.
            UnsafeSocketError: as at the start.
        """
        if self.holds_lock:
            return
        fd = _take_lock(self.path)
        os.close(self._fd)
        self._fd = fd

    def refresh(self) -> None:
        """Make the lock look used: what cleans up /tmp goes by age. So does `sweep`: not more often than it minds."""
        with contextlib.suppress(OSError):  # a disk that cannot be written to any more
            os.utime(self._fd)

    def bind(self) -> BoundSocket:
        """Bind and listen at the path, replacing the socket of a daemon that is gone.

        Raises:
            UnsafeSocketError: something that is no socket, or another user's, stands there; it is left alone.
            OSError: the folder cannot be written.
        """
        try:
            paths.check_socket(self.path)
            self.path.unlink()
        except FileNotFoundError:
            pass
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A mode set after bind would leave a moment in which others may connect.
            umask = os.umask(_PRIVATE_UMASK)
            try:
                listening.bind(os.fsencode(self.path))
            finally:
                os.umask(umask)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
        return BoundSocket(self.path, listening)

    def close(self) -> None:
        """Give the lock up."""
        if paths.is_owned_socket(self.path) and self.holds_lock:
            # Nobody else ever starts at this path, so its lock may go with it.
            paths.lock_path(self.path).unlink(missing_ok=True)
        os.close(self._fd)


def _take_lock(socket_path: Path) -> int:
    """Return the descriptor of the lock, held, with our process id in it.

    Raises:
        LostElection, UnsafeSocketError: as `Election`.
    """
    if socket_path.parent == paths.socket_folder():
        paths.ensure_folder(socket_path.parent)
    else:
        _check_parent(socket_path.parent)
    lock = paths.lock_path(socket_path)
    # O_NONBLOCK: what stands there may be a FIFO.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(lock, flags, 0o600)
    except OSError as error:
        raise UnsafeSocketError(f"Cannot open the lock {lock}: {error.strerror}.") from error
    try:
        _check_lock(lock, os.fstat(fd))
        # The umask may have taken bits that the next daemon of ours needs.
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0)
        os.close(fd)
        raise LostElection(socket_path, int(holder) if holder.strip().isdigit() else 0) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_parent(folder: Path) -> None:
    """Check a folder of the caller's own choice: it may be /tmp, but not one where others replace our files."""
    try:
        status = folder.stat()
    except OSError as error:
        raise UnsafeSocketError(f"Cannot use the socket folder {folder}: {error.strerror}.") from error
    if status.st_uid not in (0, os.geteuid()):
        raise UnsafeSocketError(f"The socket folder {folder} belongs to user {status.st_uid}, not to you.")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise UnsafeSocketError(
            f"Anybody may replace files in the socket folder {folder} (mode {stat.S_IMODE(status.st_mode):04o}). "
            f"Choose another one, or run: chmod o-w {folder}"
        )


def _check_lock(lock: Path, status: os.stat_result) -> None:
    """Check what stands at the lock's path: in /tmp it may be anybody's trap."""
    if status.st_uid != os.geteuid():
        raise UnsafeSocketError(f"The lock {lock} belongs to user {status.st_uid}, not to you.")
    # A second name makes it some other file of ours, linked here by whoever wants us to write into it.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise UnsafeSocketError(f"The lock {lock} is not a file of its own. Remove it and start again.")


def sweep(folder: Path) -> None:
    """Remove what killed daemons of single owners left in the private folder: nobody will start at those paths again.

    One whose lock is young may be about to take it.
    """
    for lock in folder.glob("own-*.lock"):
        try:
            if time.time() - lock.stat().st_mtime >= _SWEEP_AGE_S:
                remove_stale(lock.with_name(lock.name.removesuffix(".lock")))
        except (OSError, UnsafeSocketError):
            continue


def remove_stale(socket_path: Path) -> bool:
    """Remove the socket that a killed daemon left, and the lock too where nobody else starts at this path.

    False where there is none, and where the lock is held: its daemon lives, or is about to bind.

    Raises:
        UnsafeSocketError: what stands there is no socket, or another user's; it is left alone.
        OSError: the folder cannot be written.
    """
    lock = paths.lock_path(socket_path)
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # no daemon of ours was ever here
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if paths.is_owned_socket(socket_path):
            lock.unlink(missing_ok=True)
        paths.check_socket(socket_path)
        socket_path.unlink()
        return True
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)


class BoundSocket:
    """A listening socket and the directory entry that leads to it."""

    def __init__(self, path: Path, listening: socket.socket) -> None:
        self.path = path
        self.listening = listening
        status = path.lstat()
        self._identity = (status.st_dev, status.st_ino)

    @property
    def reachable(self) -> bool:
        """Whether the path still leads here: somebody may have unlinked or replaced it."""
        try:
            status = self.path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def unlink(self) -> None:
        """Remove the path if it still leads here."""
        if self.reachable:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening."""
        self.listening.close()
