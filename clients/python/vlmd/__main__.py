"""The command `vlmd`. A host app's bare installation has it too, and is told what to install."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        # What is behind the command belongs to the bridge; the client itself imports nothing of it.
        from vlmd_bridge.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name not in {"vlmd_bridge", "vlmd_bridge.cli", "vlmd_bridge.cli.main"}:
            raise
        sys.stderr.write("vlmd: the engine and the command line are not installed: pip install 'vlmd[mlx]'\n")
        return 4
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
