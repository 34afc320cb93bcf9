"""Rows of a vision model: mlx-vlm's BatchGenerator as a `Generator`.

What is worked around here is measured in docs/engine.md and guarded by ``tests/engine/test_gate_switches.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mlx_vlm.generate import BatchGenerator

from vlmd_bridge.engine.batch import Produced, Prompt
from vlmd_bridge.engine.rows.batch_prefix import BatchPrefixes
from vlmd_bridge.engine.sampling import BatchSampler

# Rows prefilled together lose all but the first row's deepstack features in mlx-vlm 0.7.10, silently.
PREFILL_ROWS = 1

# A prompt prefilled in chunks is wrong with images. None would be exact too, but computes logits for every position.
_PREFILL_STEP_TOKENS = 1 << 30


class VisionRows:
    """See `Generator`. `prefixes` shares the prefill of what prompts begin with."""

    def __init__(
        self,
        language_model: Any,
        processor: Any,
        *,
        width: int,
        sampler: BatchSampler,
        prefixes: BatchPrefixes | None,
    ) -> None:
        self._prefixes = prefixes
        self._sampler = sampler
        self._generator = BatchGenerator(
            language_model,
            processor,
            # Passed always: without one, a fused greedy step would pass our controls by.
            sampler=sampler,
            compute_logprobs=False,
            prefill_batch_size=PREFILL_ROWS,
            prefill_step_size=_PREFILL_STEP_TOKENS,
            completion_batch_size=width,
        )
        if prefixes is not None:
            self._generator._build_mixed_prompt_batch = partial(prefixes.prompt_batch, self._generator)

    def room(self) -> int:
        """Return 1 when no row waits for its prefill.

        The generator sorts what it queues by length: it is given no more than it prefills at once, so that rows run in
        order and a removal takes effect before the next row's prefill.
        """
        return 0 if self._generator.has_pending_prompts else PREFILL_ROWS

    def insert(self, prompt: Prompt) -> int:
        """Take a row."""
        prompt.control.enlist = self._sampler.enlist
        (uid,) = self._generator.insert(
            [prompt.token_ids],
            max_tokens=[prompt.max_tokens],
            prompt_kwargs=[prompt.inputs],
            logits_processors=[[prompt.control]],
        )
        return int(uid)

    def next(self) -> list[Produced]:
        """Decode and prefill."""
        return [
            Produced.of(response.uid, response.token, response.finish_reason) for response in self._generator.next()[1]
        ]

    def remove(self, uid: int) -> None:
        """Let a row go."""
        self._generator.remove(uid)

    def close(self) -> None:
        """Release the wired limit, and the shared prefixes."""
        if self._prefixes is not None:
            self._prefixes.clear()
        self._generator.close()
