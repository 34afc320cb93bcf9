"""The image process: one picture at a time, in order, from its path into the arena.

It holds no timers: the daemon kills a process that takes too long for a picture, and starts another. Nothing in here
waits on anything but the socketpair and the disk.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import mmap
import os
import platform
import signal
import sys
import time

import PIL

from vlmd_bridge.images.decode import decode_picture
from vlmd_bridge.images.errors import PictureError, shown
from vlmd_bridge.images.limits import affordable_pixels, limit_memory
from vlmd_bridge.images.sizes import check_spec
from vlmd_bridge.images.sources import read_source
from vlmd_bridge.workers.arena import map_arena
from vlmd_bridge.workers.blocking_link import BlockingLink
from vlmd_bridge.workers.messages import (
    Close,
    ConfigureImages,
    ImagesReady,
    PictureFailed,
    Prepare,
    Prepared,
    ToImages,
)

# 128 bits: accidental collisions are out of reach, and the digest is a dictionary key in the daemon.
DIGEST_BYTES = 16


def main(arguments: list[str] | None = None) -> int:
    """Serve the socketpair and the arena whose descriptors were inherited, until EOF or `Close`."""
    parser = argparse.ArgumentParser(prog="vlmd_bridge.images.process")
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    # A library that prints must not end up in somebody's output: standard output is the log too.
    os.dup2(2, 1)
    # Ctrl-C in a terminal reaches the whole group; the daemon decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(BlockingLink[ToImages](options.link_fd, ToImages), map_arena(options.arena_fd, writable=True))
    return 0


def serve(link: BlockingLink[ToImages], arena: mmap.mmap) -> None:
    """Take the configuration, say ready, then answer each `Prepare` until EOF or `Close`."""
    messages = link.receive()
    config = next(messages, None)
    if config is None or isinstance(config, Close):
        return
    if not isinstance(config, ConfigureImages):
        raise TypeError(f"{type(config).__name__} came before ConfigureImages")
    limit_memory(config.memory_limit_bytes)
    link.send(ImagesReady(pid=os.getpid(), versions={"python": platform.python_version(), "pillow": PIL.__version__}))
    for message in messages:
        match message:
            case Prepare():
                link.send(prepare(message, config, arena))
            case Close():
                return
            case _:
                raise TypeError(f"{type(message).__name__} came after ConfigureImages")


def prepare(request: Prepare, config: ConfigureImages, arena: mmap.mmap) -> Prepared | PictureFailed:
    """Bring one picture into the arena, or say why it cannot be.

    Raises:
        ValueError: the request itself is wrong (a bug of the daemon's): better to die than to write elsewhere.
    """
    check_spec(request.spec)
    if not 0 <= request.offset <= len(arena) - request.spec.max_bytes:
        raise ValueError(f"{request.spec.max_bytes} bytes at {request.offset} are not in the arena")
    started = time.perf_counter()
    try:
        data = read_source(request.path, max_bytes=config.max_source_bytes)
        digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
        picture = decode_picture(
            data, request.spec, name=shown(request.path), max_source_pixels=affordable_pixels(data, config)
        )
    except PictureError as error:
        return PictureFailed(seq=request.seq, code=error.code, error=str(error))
    except MemoryError:
        failed = PictureFailed(
            seq=request.seq,
            code="image_too_large",
            error=f"Not enough memory for {shown(request.path)}. Make it smaller.",
        )
    except Exception as error:  # noqa: BLE001 - the boundary: whatever a decoder does wrong costs one picture
        message = f"Cannot decode {shown(request.path)}: {type(error).__name__}"
        return PictureFailed(seq=request.seq, code="image_invalid", error=message)
    else:
        # Pillow keeps four bytes a pixel, so `tobytes` packs once and this copies once: 0.12 ms together at 640x384.
        # NumPy took 0.17, Pillow's private encoder 0.09: not worth an import of NumPy or a private name.
        arena[request.offset : request.offset + len(picture.pixels)] = picture.pixels
        return Prepared(
            seq=request.seq,
            width=picture.width,
            height=picture.height,
            source_width=picture.source_width,
            source_height=picture.source_height,
            digest=digest,
            prepare_s=time.perf_counter() - started,
        )
    # What the failed picture left in reference cycles would be missing for the next one.
    gc.collect()
    return failed


if __name__ == "__main__":
    sys.exit(main())
