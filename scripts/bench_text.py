"""Compare the text backend with mlx-lm's own batch generator on the same prompts, greedily, in alternating rounds.

Both run in this process on the same weights; a round is all prompts from first token in to last token out.
Usage: python scripts/bench_text.py MODEL_FOLDER [--rows 8] [--prompts 16] [--prompt-words 40] [--tokens 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from vlmd_bridge.engine.platform import choose_blas, forbid_downloads

forbid_downloads()
BLAS = choose_blas(1)

from vlmd_bridge.engine.text import TextBackend  # noqa: E402 - the BLAS comes before MLX
from vlmd_bridge.workers.messages import ConfigureEngine, Finished, Start, Text  # noqa: E402


def run_vlmd(backend: TextBackend, starts: list[Start]) -> int:
    """Return the tokens generated."""
    for start in starts:
        backend.start(start)
    tokens = ended = 0
    while ended < len(starts):
        for event in backend.step():
            assert isinstance(event, Finished), event
            tokens += event.completion_tokens
            ended += 1
    return tokens


def run_mlx_lm(model: Any, eos: list[int], prompts: list[list[int]], max_tokens: int, rows: int) -> int:
    """Return the tokens generated."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model, stop_tokens=[[token] for token in eos], completion_batch_size=rows, prefill_batch_size=rows
    )
    generator.insert(prompts, max_tokens=[max_tokens] * len(prompts))
    tokens = ended = 0
    while ended < len(prompts):
        for response in generator.next()[1]:
            tokens += response.finish_reason != "stop"
            ended += response.finish_reason is not None
    generator.close()
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    configure = ConfigureEngine(backend="text", name="bench", path=arguments.model, width=arguments.rows)
    backend = TextBackend.load(configure, lambda stage, fraction: None, BLAS)
    starts = [
        Start(
            seq=seq,
            parts=(Text(text=f"Number {seq}: " + "some words to read. " * (arguments.prompt_words // 4)),),
            max_tokens=arguments.tokens,
        )
        for seq in range(arguments.prompts)
    ]
    prompts = [backend.tokenize(start).token_ids for start in starts]
    rates: dict[str, list[float]] = {"vlmd": [], "mlx_lm": []}
    tokens = 0
    for _ in range(arguments.rounds):
        for name, speeds in rates.items():
            began_s = time.perf_counter()
            if name == "vlmd":
                tokens = run_vlmd(backend, starts)
            else:
                tokens = run_mlx_lm(backend.model, backend.eos_token_ids, prompts, arguments.tokens, arguments.rows)
            speeds.append(tokens / (time.perf_counter() - began_s))
    for name, speeds in rates.items():
        print(f"{name:7} median {statistics.median(speeds):8.1f} tokens/s, best {max(speeds):8.1f}")
    ratio = statistics.median(a / b for a, b in zip(rates["vlmd"], rates["mlx_lm"], strict=True))
    print(f"ratio   {ratio:.3f} (median of rounds, vlmd / mlx_lm; {tokens} tokens a round)")


if __name__ == "__main__":
    main()
