"""Memory: a picture that would take too much fails, alone, and the arena does not count."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlmd_bridge.images.limits import affordable_pixels
from vlmd_bridge.workers.image_messages import ConfigureImages

_MIB = 1024 * 1024

# In a process of its own, whose limit dies with it: beyond the limit, then an ordinary picture.
_BEYOND_THE_LIMIT = """
import sys
from vlmd_bridge.images import process
from vlmd_bridge.workers.arena import Arena, map_arena
from vlmd_bridge.workers.image_messages import ConfigureImages, PictureFailed, Prepare, Prepared
from vlmd_bridge.workers.messages import ImageSpec

spec = ImageSpec(factor=32, min_pixels=4096, max_pixels=40960, max_aspect_ratio=200)
arena = map_arena(Arena().fd, writable=True)
assert process.limit_memory(64 * 1024 * 1024)
# The estimate is told of plenty, so that the kernel's limit is what is met.
config = ConfigureImages(max_source_pixels=1 << 40, max_source_bytes=1 << 30, memory_limit_bytes=1 << 40)
for _ in range(3):
    for path, kind in ((sys.argv[1], PictureFailed), (sys.argv[2], Prepared)):
        answer = process.prepare(Prepare(seq=1, path=path, offset=0, spec=spec), config, arena)
        assert isinstance(answer, kind), answer
        if isinstance(answer, PictureFailed):
            assert answer.code == "image_too_large" and "memory" in answer.error, answer
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a limit that the arena does not count against")
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_too_little_memory_costs_the_picture_and_not_the_process(file_format: str, tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    Image.new("L", (6000, 6000)).convert("RGB").save(big, file_format)
    Image.new("RGB", (300, 200)).save(small, file_format)
    subprocess.run([sys.executable, "-c", _BEYOND_THE_LIMIT, str(big), str(small)], check=True, timeout=30)


@pytest.mark.parametrize(("file_format", "bytes_per_pixel"), [("JPEG", 9), ("WEBP", 18), ("PNG", 12), ("GIF", 12)])
def test_the_pixel_cap_follows_from_memory(file_format: str, bytes_per_pixel: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, file_format)
    data = file.getvalue()
    config = ConfigureImages(max_source_pixels=1 << 40, max_source_bytes=_MIB, memory_limit_bytes=132 * _MIB)
    assert affordable_pixels(data, config) == (100 * _MIB - len(data)) // bytes_per_pixel


def test_the_configured_cap_holds_where_memory_is_plenty() -> None:
    config = ConfigureImages(max_source_pixels=1000, max_source_bytes=_MIB, memory_limit_bytes=1024 * _MIB)
    assert affordable_pixels(b"", config) == 1000
    assert affordable_pixels(b"", ConfigureImages(max_source_pixels=1, max_source_bytes=1, memory_limit_bytes=1)) == 0
