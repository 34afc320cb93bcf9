"""What the vectors of ``paths`` describe, made in a folder of the test."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

# Nobody's: no test runs as this user.
OTHER_UID = 54321


def make(path: Path, what: dict[str, Any]) -> None:
    """Make `what` at `path`."""
    match what["kind"]:
        case "missing":
            return
        case "directory":
            path.mkdir()
        case "file":
            path.write_bytes(b"")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path))
            listening.close()
        case "symlink":
            target = path.with_name("target")
            make(target, {"kind": what["target"], "mode": "0700"})
            path.symlink_to(target)
            return
        case kind:
            raise ValueError(kind)
    if "mode" in what:
        path.chmod(int(what["mode"], 8))
    if what.get("owner") == "other":
        os.chown(path, OTHER_UID, OTHER_UID, follow_symlinks=False)
