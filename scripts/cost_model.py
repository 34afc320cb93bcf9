"""Fit the cost model on this machine, check it on three sizes of model, and print predicted beside measured.

Takes about two minutes on an idle machine. --document puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmd_bridge.engine.platform import choose_blas, forbid_downloads

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def main() -> None:
    """Choose the BLAS, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="BLAS threads, 0 for the engine's choice")
    parser.add_argument("--document", action="store_true", help="update docs/performance.md")
    options = parser.parse_args()
    forbid_downloads()
    blas = choose_blas(options.threads)
    # Not at the top: MLX and NumPy must not be there before the BLAS is chosen, and its threads.
    from costs.run import run

    run(blas, _DOCUMENT if options.document else None)


if __name__ == "__main__":
    main()
