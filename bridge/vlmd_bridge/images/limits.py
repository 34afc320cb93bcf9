"""How much memory a picture may take: a kernel limit where there is one, a pixel cap everywhere."""

from __future__ import annotations

import resource
import sys

from vlmd_bridge.workers.image_messages import ConfigureImages

# Memory at the peak of one picture, in bytes per source pixel, beyond the source itself. Measured with 20 megapixel
# files on Pillow 13.0 and rounded up. JPEG: CMYK and progressive 8.1 (baseline with a small target: 0.1).
_JPEG_BYTES_PER_PIXEL = 9
# WebP: the decoder holds two canvases, Pillow a third and its copy: 17.5 when animated.
_WEBP_BYTES_PER_PIXEL = 18
# The others: AVIF 4:4:4 with alpha 11.0, palette with transparency 9.0, float TIFF 9.0, RGBA 8.1.
_OTHER_BYTES_PER_PIXEL = 12

# What the interpreter and Pillow hold before the first picture: 13 to 17 MB of data, rounded up.
_BASE_BYTES = 32 * 1024 * 1024


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


def affordable_pixels(data: bytes, config: ConfigureImages) -> int:
    """Return the largest picture to decode from `data`, in pixels: the configured cap, or less if memory would not do.

    This is the bound where the kernel has none. Where it has one this still comes first, since several decoders
    (WebP, AVIF, progressive JPEG) report a failed allocation as if the file were damaged.
    """
    if data.startswith(b"\xff\xd8\xff"):
        bytes_per_pixel = _JPEG_BYTES_PER_PIXEL
    elif data[8:12] == b"WEBP":
        bytes_per_pixel = _WEBP_BYTES_PER_PIXEL
    else:
        bytes_per_pixel = _OTHER_BYTES_PER_PIXEL
    free = config.memory_limit_bytes - _BASE_BYTES - len(data)
    return max(0, min(config.max_source_pixels, free // bytes_per_pixel))
