"""Fast matrix products for MLX's CPU build, whose own BLAS is the reference one, some twenty times slower."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import sysconfig
from pathlib import Path


def preload_openblas(threads: int) -> None:
    """Load an OpenBLAS over MLX's BLAS; must run before `mlx` is imported. Does nothing off Linux or without one.

    Args:
        threads: How many threads one matrix product may use.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    site_packages = Path(sysconfig.get_paths()["purelib"])
    # The wheel of opencv-python, which mlx-vlm depends on, carries one with the plain symbol names.
    candidates = ["libopenblas.so.0", *map(str, site_packages.glob("opencv_python*.libs/libopenblas*"))]
    for candidate in candidates:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
