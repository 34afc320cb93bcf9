"""The owner of a daemon, to be killed: holds the only other end of its standard input, and starts it."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Start the command that is given, say its pid, and wait."""
    read, write = os.pipe()
    files = [(os.POSIX_SPAWN_DUP2, read, 0)]
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=files)
    os.close(read)
    print(pid, flush=True)
    signal.pause()
    os.close(write)


if __name__ == "__main__":
    main()
