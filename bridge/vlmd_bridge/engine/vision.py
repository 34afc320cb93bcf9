"""The vision backend: one vision-language model through mlx-vlm. Importing this imports MLX: `choose_blas` first."""

from __future__ import annotations

import math
import mmap
import time

import mlx.core as mx

from vlmd_bridge.engine.backend import ReportLoading
from vlmd_bridge.engine.batch import Batch, Generator
from vlmd_bridge.engine.checkpoint import Checkpoint, load_checkpoint
from vlmd_bridge.engine.grammar import Grammars
from vlmd_bridge.engine.model_backend import ModelBackend, Tokenized, engine_info
from vlmd_bridge.engine.platform import Blas, limit_memory
from vlmd_bridge.engine.prefix import SUPPORTED, PrefixCache
from vlmd_bridge.engine.prompt import PromptBuilder
from vlmd_bridge.engine.sampling import BatchSampler
from vlmd_bridge.engine.vision_rows import VisionRows
from vlmd_bridge.workers.messages import ConfigureEngine, Count, EngineInfo, ImageSpec, Picture, Start, Text

# Side of the picture to warm up with, where the model sets no lower bound.
_WARM_UP_SIDE = 64


class VisionBackend(ModelBackend):
    """See `Backend`."""

    def __init__(self, checkpoint: Checkpoint, arena: mmap.mmap, info: EngineInfo, *, trace: bool = False) -> None:
        """`trace` keeps the log-probabilities of every row on its control, for the correctness gate."""
        grammars = Grammars(checkpoint.tokenizer, checkpoint.eos_token_ids)
        self.prompts = PromptBuilder(checkpoint, arena)
        super().__init__(info, checkpoint.tokenizer, grammars, self.prompts.template)
        # None shares no prefill; set before rows run.
        self.prefixes = PrefixCache(checkpoint.image_token_ids) if info.model_type in SUPPORTED else None

        def rows(batch: Batch) -> Generator:
            return VisionRows(
                checkpoint.model.language_model,
                checkpoint.processor,
                width=batch.width,
                sampler=batch.sampler,
                prefixes=self.prefixes,
            )

        self.batch = Batch(rows, width=info.width, sampler=BatchSampler(grammars.vocab_size, trace=trace))

    @classmethod
    def load(
        cls,
        configure: ConfigureEngine,
        arena: mmap.mmap,
        report: ReportLoading,
        blas: Blas,
        *,
        trace: bool = False,
    ) -> VisionBackend:
        """Load the model folder that `configure` names.

        Raises:
            LoadError: mlx-vlm cannot load it.
        """
        began_s = time.monotonic()
        report("weights", 0.3)
        limit_memory(mx)
        checkpoint = load_checkpoint(configure.path)
        report("warming", 0.9)
        info = engine_info(
            configure,
            blas,
            model_type=checkpoint.model_type,
            context_tokens=checkpoint.context_tokens,
            weight_bytes=checkpoint.weight_bytes,
            dtype=checkpoint.dtype,
            packages=("mlx", "mlx-vlm", "llguidance", "transformers"),
            image_spec=checkpoint.image_spec,
        )
        backend = cls(checkpoint, arena, info, trace=trace)
        backend._warm_up(_warm_up_start(checkpoint.image_spec))
        backend._loaded(began_s)
        return backend

    def tokenize(self, start: Start) -> Tokenized:
        """Tokenize, and run the vision tower."""
        return self.prompts.embed(start)

    def count_tokens(self, count: Count) -> int:
        """Count text and pictures."""
        return self.prompts.count(count)


def _warm_up_start(spec: ImageSpec) -> Start:
    side = spec.factor * math.ceil(math.sqrt(max(spec.min_pixels, _WARM_UP_SIDE**2)) / spec.factor)
    # Whatever the arena holds there: no picture is in it yet.
    parts = (Text(text="Frame:"), Picture(offset=0, width=side, height=side))
    return Start(seq=-1, parts=parts, max_tokens=2)
