"""The image process: one picture at a time, in order, from its path into the arena.

It holds no timers: the daemon kills a process that takes too long for a picture, and starts another. Nothing in here
waits on anything but the socketpair and the disk.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import mmap
import os
import platform
import signal
import sys
import time

import PIL

from vlmd_bridge import faults
from vlmd_bridge.images.decode import Decoded, decode_picture
from vlmd_bridge.images.errors import PictureError, shown
from vlmd_bridge.images.limits import affordable_pixels, limit_memory
from vlmd_bridge.images.sizes import check_spec
from vlmd_bridge.images.sources import read_source
from vlmd_bridge.workers.arena import map_arena
from vlmd_bridge.workers.blocking_link import BlockingLink
from vlmd_bridge.workers.image_messages import (
    MAX_LUMA_BYTES,
    Compare,
    Compared,
    ConfigureImages,
    ImagesReady,
    Likeness,
    Luma,
    PictureFailed,
    Prepare,
    Prepared,
    Reference,
    ToImages,
)
from vlmd_bridge.workers.messages import STACKS_SIGNAL, Close
from vlmd_bridge.workers.orphan import end_with_daemon

# 128 bits: accidental collisions are out of reach, and the digest is a dictionary key in the daemon.
DIGEST_BYTES = 16


def main(arguments: list[str] | None = None) -> int:
    """Serve the socketpair and the arena whose descriptors were inherited, until EOF or `Close`."""
    parser = argparse.ArgumentParser(prog="vlmd_bridge.images.process")
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    parser.add_argument("--fault", action="append", default=[])
    options = parser.parse_args(arguments)
    faults.install(faults.Plan.inherit(options.fault))
    # A library that prints must not end up in somebody's output: standard output is the log too.
    os.dup2(2, 1)
    # NumPy would start a thread a core for a BLAS that nothing in here calls, each with memory of its own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Ctrl-C in a terminal reaches the whole group; the daemon decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = BlockingLink[ToImages](options.link_fd, ToImages)
    end_with_daemon(link.socket)
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL)
    serve(link, map_arena(options.arena_fd, writable=True))
    return 0


def serve(link: BlockingLink[ToImages], arena: mmap.mmap) -> None:
    """Take the configuration, say ready, then answer each `Prepare` until EOF or `Close`."""
    at_start, at_picture, at_path, at_close = (
        faults.point("image", name, link.socket) for name in ("start", "picture", "path", "close")
    )
    messages = link.receive()
    if at_start is not None:
        at_start()
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
                if at_picture is not None:
                    at_picture()
                if at_path is not None:
                    at_path(message.path)
                link.send(prepare(message, config, arena))
            case Compare():
                link.send(compare(message, arena))
            case Close():
                break
            case _:
                raise TypeError(f"{type(message).__name__} came after ConfigureImages")
    if at_close is not None:
        at_close()


def prepare(request: Prepare, config: ConfigureImages, arena: mmap.mmap) -> Prepared | PictureFailed:
    """Bring one picture into the arena, or say why it cannot be.

    Raises:
        ValueError: the request itself is wrong (a bug of the daemon's): better to die than to write elsewhere.
    """
    check_spec(request.spec)
    _check_range(request.offset, request.spec.max_bytes, arena)
    if request.luma_offset is not None:
        _check_range(request.luma_offset, MAX_LUMA_BYTES, arena)
    started = time.perf_counter()
    try:
        data = read_source(request.path, max_bytes=config.max_source_bytes)
        picture = decode_picture(
            data,
            request.spec,
            name=shown(request.path),
            max_source_pixels=affordable_pixels(data, config),
            with_luma=request.luma_offset is not None,
        )
        _check_fits(picture, request)
        # A JPEG that was decoded smaller gives other pixels than a whole one: results kept for one are not the other's.
        person = b"drafted" if picture.drafted else b""
        digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES, person=person).digest()
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
        luma = likeness = None
        if request.luma_offset is not None and picture.luma is not None:
            width, height, samples = picture.luma
            luma = Luma(offset=request.luma_offset, width=width, height=height)
            arena[luma.offset : luma.offset + len(samples)] = samples
            if request.reference is not None:
                likeness = _likeness(request.reference, luma, arena)
        return Prepared(
            seq=request.seq,
            width=picture.width,
            height=picture.height,
            source_width=picture.source_width,
            source_height=picture.source_height,
            digest=digest,
            prepare_s=time.perf_counter() - started,
            luma=luma,
            likeness=likeness,
        )
    # What the failed picture left in reference cycles would be missing for the next one.
    gc.collect()
    return failed


def compare(request: Compare, arena: mmap.mmap) -> Compared:
    """Compare pictures whose luminance stands in the arena.

    Raises:
        ValueError: the request itself is wrong (a bug of the daemon's).
    """
    for luma in (request.reference.luma, *request.others):
        _check_range(luma.offset, luma.width * luma.height, arena)
    try:
        # Imported here: NumPy takes 0.1 s and 20 MB, which only jobs that ask for it need.
        from vlmd_bridge.images.compare import compare_all

        return compare_all(request, arena)
    except MemoryError:
        return Compared(seq=request.seq, likenesses=(Likeness(same=False),))


def _likeness(reference: Reference, luma: Luma, arena: mmap.mmap) -> Likeness | None:
    """Return how a picture is like the reference, None where there is no memory to tell: it costs no picture."""
    _check_range(reference.luma.offset, reference.luma.width * reference.luma.height, arena)
    try:
        from vlmd_bridge.images.compare import compare_luma

        return compare_luma(reference, luma, arena)
    except MemoryError:
        return None


def _check_fits(picture: Decoded, request: Prepare) -> None:
    """Refuse what would run over into the range of another picture, whose description would be wrong, unnoticed."""
    parts = [("pixels", picture.pixels, request.spec.max_bytes)]
    if picture.luma is not None:
        parts.append(("luminance", picture.luma[2], MAX_LUMA_BYTES))
    for what, data, room_bytes in parts:
        if len(data) > room_bytes:
            message = (
                f"A defect of vlmd, not of the picture: {shown(request.path)}, {picture.source_width}x"
                f"{picture.source_height}, makes {len(data)} bytes of {what}, where {room_bytes} are free. Report it, "
                "please; another size of the picture may do meanwhile."
            )
            raise PictureError("image_invalid", message)


def _check_range(offset: int, size_bytes: int, arena: mmap.mmap) -> None:
    if not 0 <= offset <= len(arena) - size_bytes:
        raise ValueError(f"{size_bytes} bytes at {offset} are not in the arena")


if __name__ == "__main__":
    sys.exit(main())
