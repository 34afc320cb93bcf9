"""The limit: vlmd's own engine in one process, fed RGB arrays of the model's size. No daemon, no socket, no decoding.

Started by ``scripts/bench``. Reads a JSON list of paths a line on standard input and answers each with a JSON object:
the seconds that the engine took, the text of each frame, its tokens, and the seconds that reading, decoding and
resizing took *before* that, which do not count. A frame that fails ends the process.

The engine gets the BLAS threads that it has in the daemon, where the image process has another core. What it runs is
what the daemon would send it: `DescribeJob` makes it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from vlmd_bridge.engine.backend import Backend, open_backend
from vlmd_bridge.images.decode import decode_picture
from vlmd_bridge.jobs.describe import DescribeJob
from vlmd_bridge.workers.messages import ConfigureEngine, Failed, Finished, ImageSpec, Picture, Start
from vlmd_protocol.messages import DescribeParams, ImageRef

_ARENA_BYTES = 1 << 30  # as the daemon's
_MAX_SOURCE_PIXELS = 100_000_000


class _Nobody:
    """A sink: the job only makes prompts here."""

    writable = True

    def send(self, line: object) -> None:
        """Nothing is sent."""

    def end(self, line: object) -> None:
        """Nothing is sent."""


def prepare(paths: Sequence[str], spec: ImageSpec, arena: mmap.mmap) -> Iterator[Picture]:
    """Read, decode and resize the pictures into the arena."""
    offset = 0
    for path in paths:
        decoded = decode_picture(Path(path).read_bytes(), spec, name=path, max_source_pixels=_MAX_SOURCE_PIXELS)
        arena[offset : offset + len(decoded.pixels)] = decoded.pixels
        yield Picture(offset=offset, width=decoded.width, height=decoded.height)
        offset += len(decoded.pixels)


def starts(paths: Sequence[str], pictures: Sequence[Picture], max_tokens: int | None) -> list[Start]:
    """Return what the daemon would have the engine run."""
    refs = [ImageRef(image_path=path, timestamp=float(i)) for i, path in enumerate(paths)]
    params = DescribeParams(images=refs, max_tokens_per_frame=max_tokens)
    job = DescribeJob(id=0, params=params, sink=_Nobody(), client=0)
    messages = []
    for seq, picture in enumerate(pictures):
        prompt = job.next_prompt()
        prompt.frames[0].picture = picture
        message = job.start_message(prompt, seq)
        assert isinstance(message, Start)
        messages.append(message)
    return messages


def run(backend: Backend, messages: Sequence[Start]) -> list[Finished]:
    """Run all of `messages`, never more of them in the engine than the daemon would grant, and return their ends."""
    waiting = iter(messages)
    ended: dict[int, Finished] = {}
    held = 0
    while len(ended) < len(messages):
        while held < backend.info.width + 2 and (message := next(waiting, None)) is not None:
            backend.start(message)
            held += 1
        for event in backend.step():
            if isinstance(event, Failed):
                raise SystemExit(f"frame {event.seq}: {event.error}")
            assert isinstance(event, Finished)
            ended[event.seq] = event
            held -= 1
    return [ended[seq] for seq in range(len(messages))]


def main() -> None:
    """Load the model, then describe whatever list of frames comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=0, help="BLAS threads, 0 for as many as in the daemon")
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=None, help="of a frame")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arena = mmap.mmap(-1, _ARENA_BYTES)
    configure = ConfigureEngine(
        backend="vision", name="limit", path=options.model, threads=options.threads, width=options.width
    )
    backend = open_backend(configure, arena, lambda stage, fraction: None)
    assert backend.info.image_spec is not None
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        paths = json.loads(line)
        start_s = time.perf_counter()
        pictures = list(prepare(paths, backend.info.image_spec, arena))
        decoded_s, cpu_s = time.perf_counter(), time.process_time()
        ended = run(backend, starts(paths, pictures, options.max_tokens))
        answer = {
            "seconds": time.perf_counter() - decoded_s,
            "cpu_seconds": time.process_time() - cpu_s,
            "decode_seconds": decoded_s - start_s,
            "texts": [each.text for each in ended],
            "tokens": [[each.prompt_tokens, each.completion_tokens] for each in ended],
            "width": backend.info.width,
            "blas": backend.info.blas,
            "threads": backend.info.threads,
            "image_spec": msgspec.to_builtins(backend.info.image_spec),
        }
        backend.idle()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
