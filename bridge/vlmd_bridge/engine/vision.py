"""The vision backend: one vision-language model through mlx-vlm. Importing this imports MLX: `choose_blas` first."""

from __future__ import annotations

import gc
import math
import mmap
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version

import mlx.core as mx
import msgspec
from mlx_vlm._stream_cleanup import clear_mlx_streams

from vlmd_bridge.engine.backend import Event, LoadError, ReportLoading, Usage
from vlmd_bridge.engine.batch import Batch, Prompt, Row
from vlmd_bridge.engine.budget import RecordBudget
from vlmd_bridge.engine.checkpoint import Checkpoint, load_checkpoint
from vlmd_bridge.engine.grammar import Grammars
from vlmd_bridge.engine.output import decode
from vlmd_bridge.engine.platform import Blas, limit_memory, log
from vlmd_bridge.engine.prefix import SUPPORTED, PrefixCache
from vlmd_bridge.engine.prompt import PromptBuilder
from vlmd_bridge.engine.sampling import RowControl
from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    EngineInfo,
    Failed,
    Finished,
    ImageSpec,
    Picture,
    RecordConstraint,
    Start,
    Text,
)

# Rows of one decode step; docs/engine.md's figures are at eight.
_WIDTH = 8

# Side of the picture to warm up with, where the model sets no lower bound.
_WARM_UP_SIDE = 64


class VisionBackend:
    """See `Backend`."""

    def __init__(self, checkpoint: Checkpoint, arena: mmap.mmap, info: EngineInfo, *, trace: bool = False) -> None:
        """`trace` keeps the log-probabilities of every row on its control, for the correctness gate."""
        self.info = info
        self._tokenizer = checkpoint.tokenizer
        self._grammars = Grammars(checkpoint.tokenizer, checkpoint.eos_token_ids)
        self.prompts = PromptBuilder(checkpoint, arena)
        self.batch = Batch(
            checkpoint.model.language_model,
            checkpoint.processor,
            width=info.width,
            vocab_size=self._grammars.vocab_size,
            prefixes=PrefixCache(checkpoint.image_token_ids) if info.model_type in SUPPORTED else None,
            trace=trace,
        )
        self._prompt_tokens = 0
        self._completion_tokens = 0

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
        info = EngineInfo(
            name=configure.name,
            path=configure.path,
            backend="vision",
            model_type=checkpoint.model_type,
            width=configure.width or _WIDTH,
            context_tokens=checkpoint.context_tokens,
            weight_bytes=checkpoint.weight_bytes,
            dtype=checkpoint.dtype,
            device="gpu" if mx.default_device() == mx.gpu else "cpu",
            blas=blas.name,
            threads=blas.threads,
            load_s=0.0,  # known once it runs
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("mlx", "mlx-vlm", "llguidance", "transformers")},
            },
            image_spec=checkpoint.image_spec,
        )
        backend = cls(checkpoint, arena, info, trace=trace)
        backend._warm_up(checkpoint.image_spec)
        backend.info = msgspec.structs.replace(info, load_s=time.monotonic() - began_s)
        # The model stack's objects live as long as the process: no collection need look at them again.
        gc.collect()
        gc.freeze()
        log(f"{info.name}: {info.model_type}, {info.dtype} on {info.device}, BLAS {blas.name}, {blas.threads} threads")
        return backend

    def start(self, start: Start) -> None:
        """Queue `start`."""
        self.batch.add(Row(seq=start.seq, prepare=lambda: self._prepare(start)))

    def step(self) -> Sequence[Event]:
        """Decode one token of every running row and advance one row's prefill."""
        return [self._event(row) for row in self.batch.step()]

    def remove(self, seq: int) -> None:
        """Drop `seq`."""
        self.batch.remove(seq)

    def usage(self) -> Usage:
        """Return token counters and MLX's memory."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            active_memory_bytes=mx.get_active_memory(),
            cache_memory_bytes=mx.get_cache_memory(),
        )

    def idle(self) -> None:
        """Release the wired limit and freed buffers."""
        self.batch.close()

    def reset(self) -> None:
        """Drop every sequence and the generator that held them."""
        self.batch.close()

    def close(self) -> None:
        """Release the model's streams: without this the interpreter aborts at exit, three times of four."""
        self.batch.close()
        clear_mlx_streams()

    def _warm_up(self, spec: ImageSpec) -> None:
        """Run one small sequence, so that a model that cannot run fails now and kernels are built (on Metal).

        Raises:
            LoadError: it failed.
        """
        side = spec.factor * math.ceil(math.sqrt(max(spec.min_pixels, _WARM_UP_SIDE**2)) / spec.factor)
        # Whatever the arena holds there: no picture is in it yet.
        parts = (Text(text="Frame:"), Picture(offset=0, width=side, height=side))
        self.start(Start(seq=-1, parts=parts, max_tokens=2))
        events: list[Event] = []
        while not events:
            events += self.step()
        if isinstance(events[0], Failed):
            raise LoadError("model_load_failed", f"{self.info.path} does not run: {events[0].error}")
        self.batch.close()
        self._prompt_tokens = self._completion_tokens = 0

    def _prepare(self, start: Start) -> Prompt:
        embedded = self.prompts.embed(start)
        prompt_tokens = len(embedded.token_ids)
        self._prompt_tokens += prompt_tokens
        max_tokens = max(1, min(start.max_tokens, self.info.context_tokens - prompt_tokens))
        matcher = budget = None
        if start.constraint is not None:
            matcher = self._grammars.matcher(start.constraint, max_tokens)
            if isinstance(start.constraint, RecordConstraint):
                budget = RecordBudget(self._grammars.tokenizer, start.constraint, max_tokens)
        control = RowControl(self.batch.sampler, matcher=matcher, budget=budget, temperature=start.sampling.temperature)
        return Prompt(token_ids=embedded.token_ids, inputs=embedded.inputs, control=control, max_tokens=max_tokens)

    def _event(self, row: Row) -> Event:
        if row.error is not None or row.prompt is None:
            error = row.error
            assert error is not None
            return Failed(seq=row.seq, code=error.code, error=str(error))
        self._completion_tokens += len(row.tokens)
        return Finished(
            seq=row.seq,
            text=decode(self._tokenizer, row.tokens),
            finish_reason="stop" if row.finish_reason == "stop" else "length",
            prompt_tokens=len(row.prompt.token_ids),
            completion_tokens=len(row.tokens),
            prefill_s=row.first_token_s - row.admitted_s,
            decode_s=row.finished_s - row.first_token_s,
        )
