"""The vision backend: one vision-language model through mlx-vlm. Importing this imports MLX: `choose_blas` first."""

from __future__ import annotations

import math
import mmap
import time
from typing import Any

import mlx.core as mx
import msgspec

from vlmd_bridge.engine.backend import ReportLoading
from vlmd_bridge.engine.batch import Batch, Generator
from vlmd_bridge.engine.checkpoint import Checkpoint, load_checkpoint
from vlmd_bridge.engine.grammar.grammars import Grammars
from vlmd_bridge.engine.model_backend import ModelBackend, Tokenized, engine_info
from vlmd_bridge.engine.platform import Blas, limit_memory, log
from vlmd_bridge.engine.prompt import PromptBuilder
from vlmd_bridge.engine.rows.batch_prefix import BatchPrefixes
from vlmd_bridge.engine.rows.decode_rows import DecodeRows
from vlmd_bridge.engine.rows.language import SUPPORTED, Language
from vlmd_bridge.engine.rows.prefix import Prefixes, PrefixIndex
from vlmd_bridge.engine.rows.vision_rows import VisionRows
from vlmd_bridge.engine.rows.width import choose_width
from vlmd_bridge.engine.sampling import BatchSampler
from vlmd_bridge.engine.switches import ALL_ON, Switches
from vlmd_bridge.workers.messages import ConfigureEngine, Count, EngineInfo, ImageSpec, Picture, Start, Text

# Side of the picture to warm up with, where the model sets no lower bound.
_WARM_UP_SIDE = 64


class VisionBackend(ModelBackend):
    """See `Backend`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arena: mmap.mmap,
        info: EngineInfo,
        *,
        switches: Switches = ALL_ON,
        trace: bool = False,
    ) -> None:
        """`trace` keeps the log-probabilities of every row on its control, for the correctness gate."""
        grammars = Grammars(checkpoint.tokenizer, checkpoint.eos_token_ids)
        self.prompts = PromptBuilder(checkpoint, arena, vision_tower=switches.vision_tower)
        super().__init__(info, checkpoint.tokenizer, grammars, self.prompts.template)
        known = info.model_type in SUPPORTED
        self._language = Language(checkpoint.model.language_model) if known and switches.own_decode else None
        # Set before rows run; None shares no prefill.
        self.prefixes: PrefixIndex[Any] | None = None
        if known and switches.shared_prefix:
            kind = BatchPrefixes if self._language is None else Prefixes
            self.prefixes = kind(checkpoint.image_token_ids)

        def rows(batch: Batch) -> Generator:
            if self._language is not None:
                assert self.prefixes is None or isinstance(self.prefixes, Prefixes)
                return DecodeRows(
                    self._language,
                    checkpoint.eos_token_ids,
                    sampler=batch.sampler,
                    prefixes=self.prefixes,
                    forced_tokens=switches.forced_tokens,
                )
            assert self.prefixes is None or isinstance(self.prefixes, BatchPrefixes)
            return VisionRows(
                checkpoint.model.language_model,
                checkpoint.processor,
                width=batch.width,
                sampler=batch.sampler,
                prefixes=self.prefixes,
            )

        sampler = BatchSampler(grammars.vocab_size, trace=trace, batched_masks=switches.batched_masks)
        self.batch = Batch(rows, width=info.width, sampler=sampler)

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
        switches = Switches.without(configure.off)
        checkpoint = load_checkpoint(configure.path, vision_tower=switches.vision_tower)
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
        backend = cls(checkpoint, arena, info, switches=switches, trace=trace)
        backend._warm_up(_warm_up_start(checkpoint.image_spec))
        memory = backend._bound_memory()
        if backend.prefixes is not None:
            backend.prefixes.limit_bytes = memory.prefixes_bytes
        if switches.measured_width and not configure.width:
            backend._measure_width(memory.rows_bytes)
        backend._loaded(began_s)
        return backend

    def start(self, start: Start) -> None:
        """Queue `start`, and have its pictures embedded meanwhile."""
        self.prompts.begin(start)
        super().start(start)

    def remove(self, seq: int) -> None:
        """Drop `seq`."""
        self.prompts.drop(seq)
        super().remove(seq)

    def reset(self) -> set[int]:
        """Drop every sequence that has begun and the generator that held them."""
        self.prompts.drop_all()  # those of rows that wait are made once more
        return super().reset()

    def close(self) -> None:
        """Release the model's streams."""
        self.prompts.drop_all()
        super().close()

    def _measure_width(self, rows_bytes: int) -> None:
        if self._language is None:
            return
        width, steps_s = choose_width(self._language, rows_bytes)
        self.info = msgspec.structs.replace(self.info, width=width)
        self.batch.ordinary_width = width
        curve = ", ".join(f"{rows}: {step_s * 1e3:.1f} ms" for rows, step_s in steps_s.items())
        log(f"{self.info.name}: {width} rows a batch; a decode step by rows: {curve}")

    def tokenize(self, start: Start) -> Tokenized:
        """Tokenize, and run the vision tower."""
        try:
            return self.prompts.embed(start)
        finally:
            self.prompts.drop(start.seq)  # what was begun for a prompt that is refused

    def count_tokens(self, count: Count) -> int:
        """Count text and pictures."""
        return self.prompts.count(count)


def _warm_up_start(spec: ImageSpec) -> Start:
    side = spec.factor * math.ceil(math.sqrt(max(spec.min_pixels, _WARM_UP_SIDE**2)) / spec.factor)
    # Whatever the arena holds there: no picture is in it yet.
    parts = (Text(text="Frame:"), Picture(offset=0, width=side, height=side))
    return Start(seq=-1, parts=parts, max_tokens=2)
