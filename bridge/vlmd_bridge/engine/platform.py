"""Fits MLX to the machine: a fast BLAS and float32 on Linux, memory limits on macOS.

`choose_blas` must run before MLX is imported; the rest after.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from vlmd_bridge.machine import cores

# Beyond this a decode step of a small batch has no work for more threads.
_MAX_THREADS = 8

# macOS keeps about this share of the recommended working set usable beside the window server (docs/engine.md).
_MEMORY_SHARE = 0.9

# Enough to reuse the buffers of a decode step; without a limit MLX keeps every buffer it ever freed.
_CACHE_SHARE = 0.1
_MAX_CACHE_BYTES = 2 * 1024**3


class Blas(msgspec.Struct, frozen=True, kw_only=True):
    """The BLAS that matrix products on the CPU run on, and its threads."""

    name: str
    threads: int


class MemoryControl(Protocol):
    """The part of `mlx.core` that limits memory."""

    def device_info(self) -> dict[str, Any]:
        """Describe the GPU."""
        ...

    def set_memory_limit(self, limit: int) -> int:
        """Bound allocations, bytes; return the former bound."""
        ...

    def set_cache_limit(self, limit: int) -> int:
        """Bound the cache of freed buffers, bytes; return the former bound."""
        ...


def choose_blas(
    threads: int,
    environ: MutableMapping[str, str] = os.environ,
    load: Callable[[str], object] = lambda path: ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL),
    system: str = sys.platform,
) -> Blas:
    """Load OpenBLAS ahead of the reference BLAS that the mlx-cpu wheel links, where there is one.

    The symbols of a library opened with RTLD_GLOBAL come first when MLX is imported later: 60 to 210 instead of 3 to
    7 GFLOP/s in float32. `VLMD_BLAS` is ``auto`` (default), ``off`` or the path of a library.

    Args:
        threads: BLAS threads; 0 leaves one core to the rest of the daemon.
        environ: Where `VLMD_BLAS` is read and the thread count is set for the library to read.
        load: Opens a library; raises OSError.
        system: As `sys.platform`.
    """
    threads = threads or max(1, min(_MAX_THREADS, cores() - 1))
    if system == "darwin":
        return Blas(name="accelerate", threads=threads)
    # OpenBLAS reads this once, when it is loaded.
    environ["OPENBLAS_NUM_THREADS"] = str(threads)
    wanted = environ.get("VLMD_BLAS", "auto")
    if wanted == "off":
        return Blas(name="reference", threads=1)
    for path in _candidates() if wanted == "auto" else [wanted]:
        try:
            load(path)
        except OSError as error:
            if wanted != "auto":
                log(f"VLMD_BLAS={wanted} cannot be loaded ({error}); matrix products will be slow")
            continue
        return Blas(name=path, threads=threads)
    return Blas(name="reference", threads=1)


def forbid_downloads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep the model stack off the network: what is not on this disk must fail, and say so."""
    environ["HF_HUB_OFFLINE"] = "1"
    environ["TRANSFORMERS_OFFLINE"] = "1"
    # The tokenizers library warns when it forks threads that nobody needs here.
    environ["TOKENIZERS_PARALLELISM"] = "false"


def limit_memory(control: MemoryControl) -> None:
    """Bound MLX's memory on Metal, where an unbounded cache pushes the machine into swap.

    Nothing happens without Metal, whose device says what it can hold. Metal itself is out of reach of the Linux tests:
    they run this with a fake in its place.
    """
    if limit_bytes := working_set_bytes(control.device_info()):
        control.set_memory_limit(int(limit_bytes * _MEMORY_SHARE))
        control.set_cache_limit(min(_MAX_CACHE_BYTES, int(limit_bytes * _CACHE_SHARE)))


def working_set_bytes(device_info: Mapping[str, Any]) -> int:
    """Return what a GPU can hold by what MLX says of it, 0 without Metal."""
    return int(device_info.get("max_recommended_working_set_size", 0))


def _candidates() -> Iterator[str]:
    yield "libopenblas.so.0"  # Debian: libopenblas0-pthread
    # The opencv-python wheel, which mlx-vlm depends on, carries one that exports plain cblas names. Its own loader
    # path finds the libgfortran beside it.
    spec = importlib.util.find_spec("cv2")
    if spec is not None and spec.origin is not None:
        for library in sorted(Path(spec.origin).parents[1].glob("opencv_python*.libs/libopenblas*")):
            yield str(library)


def log(text: str) -> None:
    """Write a line to the worker's log, which is its standard error."""
    print(f"vlmd engine: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the log
