"""How much memory a picture may take: a kernel limit where there is one, a pixel cap everywhere."""

from __future__ import annotations

import resource
import sys

from vlmd_bridge.workers.messages import ConfigureImages

# Memory at the peak of one picture, per source pixel: what the decoder holds (4, for WebP 12), the same with alpha
# (4) and flattened (4). Measured: see tests/unit/test_images_limits.py.
_PEAK_BYTES_PER_PIXEL = 12


def limit_memory(limit_bytes: int) -> bool:
    """Have allocations fail beyond `limit_bytes` in this process; return whether the system can do that.

    Linux: RLIMIT_DATA, which since 4.7 counts private writable mappings and so not the arena (a shared mapping of
    1 GiB, mostly holes). RLIMIT_AS would count the arena, every library and the address space that malloc reserves
    per thread. macOS: RLIMIT_DATA covers only `brk`, which its malloc does not use, and RLIMIT_AS is not enforced, so
    there `affordable_pixels` is all there is. Not run on macOS.
    """
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    # The soft limit alone: nothing in here raises it again.
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True


def affordable_pixels(config: ConfigureImages) -> int:
    """Return the largest picture to decode, in pixels: the configured cap, or less if memory would not do."""
    return min(config.max_source_pixels, config.memory_limit_bytes // _PEAK_BYTES_PER_PIXEL)
