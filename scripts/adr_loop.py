"""ADR-006's method in one process, on stock mlx-vlm: four labelled frames a prompt, one prompt after the other.

Started by ``scripts/bench``. Reads a JSON list of paths a line on standard input and answers each with a JSON object:
the seconds and the processor time it took, and the text of each frame. ``--blas PATH`` preloads a BLAS before MLX.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time

FRAMES_PER_PROMPT = 4
MAX_TOKENS = 2000


def main() -> None:
    """Load the model, then describe whatever list of frames comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--blas")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.blas:
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
        ctypes.CDLL(options.blas, mode=ctypes.RTLD_GLOBAL)
    from mlx_vlm import load, stream_generate

    from vlmd_bridge import record

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model, processor = load(options.model)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        paths = json.loads(line)
        start, cpu = time.perf_counter(), time.process_time()
        texts: list[str] = []
        for first in range(0, len(paths), FRAMES_PER_PROMPT):
            batch = paths[first : first + FRAMES_PER_PROMPT]
            content: list[dict[str, str]] = []
            for position in range(1, len(batch) + 1):
                content += [
                    {"type": "text", "text": record.interleaved_label(position, first + position - 1.0)},
                    {"type": "image"},
                ]
            content.append({"type": "text", "text": record.interleaved_instructions(len(batch))})
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            chunks = stream_generate(model, processor, prompt, image=batch, max_tokens=MAX_TOKENS, temperature=0.0)
            text = "".join(chunk.text for chunk in chunks)
            texts += [raw for _, raw in record.parse_interleaved(text, len(batch))]
        answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "texts": texts}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
