"""What the vision and the text backend have in common: sequences in, events out, over one `Batch`."""

from __future__ import annotations

import gc
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import msgspec

from vlmd_bridge.engine.backend import Event, LoadError, SequenceError, Usage
from vlmd_bridge.engine.batch import Batch, Prompt, Row
from vlmd_bridge.engine.control import Budget, Grammar, RowControl, Thinking
from vlmd_bridge.engine.detokenizer import Detokenizer, TextStream
from vlmd_bridge.engine.grammar.grammars import Grammars
from vlmd_bridge.engine.memory import MemoryBudget
from vlmd_bridge.engine.output import THINK_OPEN, Answer
from vlmd_bridge.engine.platform import Blas, log
from vlmd_bridge.engine.rows.width import DEFAULT_WIDTH
from vlmd_bridge.engine.template import ChatTemplate
from vlmd_bridge.engine.weights import release_streams
from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    ImageSpec,
    Start,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """A prompt's tokens, the model's keyword arguments, and whether it ends inside a thinking part."""

    token_ids: list[int]
    inputs: dict[str, Any]
    opens_thinking: bool


class ModelBackend(ABC):
    """See `Backend`. Subclasses load a model, make its `batch`, and turn a `Start` into tokens."""

    batch: Batch

    def __init__(self, info: EngineInfo, tokenizer: Any, grammars: Grammars, template: ChatTemplate) -> None:
        self.info = info
        self.detokenizer = Detokenizer(tokenizer)
        self._grammars = grammars
        self._template = template
        open_token = tokenizer.convert_tokens_to_ids(THINK_OPEN)
        known = isinstance(open_token, int) and open_token != tokenizer.unk_token_id
        self._open_token: int | None = open_token if known else None
        self._prompt_tokens = 0
        self._completion_tokens = 0

    @abstractmethod
    def tokenize(self, start: Start) -> Tokenized:
        """Return the prompt of `start`, ready for the language model.

        Raises:
            SequenceError: it cannot run.
        """

    @abstractmethod
    def count_tokens(self, count: Count) -> int:
        """Return the tokens of a prompt.

        Raises:
            SequenceError: a `Start` with it could not run.
        """

    def start(self, start: Start) -> None:
        """Queue `start`."""
        if not len(self.batch):
            # What `Finished` reports is the peak since the engine last had nothing to do: the weights and all rows.
            mx.reset_peak_memory()
        self.batch.add(Row(seq=start.seq, prepare=lambda: self._prepare(start), stream=start.stream, front=start.front))

    def step(self) -> Sequence[Event]:
        """Decode one token of every running row and advance the prefill."""
        events: list[Event] = []
        for row in self.batch.step():
            events += self._deltas(row)
            events.append(self._event(row))
        for row in self.batch.streaming():
            events += self._deltas(row)
        return events

    def count(self, count: Count) -> Counted | Failed:
        """Count the tokens of a prompt."""
        try:
            return Counted(
                seq=count.seq, prompt_tokens=self.count_tokens(count), context_tokens=self.info.context_tokens
            )
        except SequenceError as error:
            return Failed(seq=count.seq, code=error.code, error=str(error))

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

    def reset(self) -> set[int]:
        """Drop every sequence that has begun and the generator that held them."""
        return self.batch.reset()

    def close(self) -> None:
        """Release the model's streams: without this the interpreter aborts at exit, three times of four."""
        self.batch.close()
        release_streams()

    def _warm_up(self, start: Start) -> None:
        """Run one small sequence, so that a model that cannot run fails now and kernels are built (on Metal).

        Raises:
            LoadError: it failed.
        """
        self.start(start)
        events: list[Event] = []
        while not events:
            events += self.step()
        if isinstance(events[0], Failed):
            raise LoadError("model_load_failed", f"{self.info.path} does not run: {events[0].error}")
        self.batch.close()
        self._prompt_tokens = self._completion_tokens = 0

    def _bound_memory(self) -> MemoryBudget:
        """Bound what rows that run together hold by the memory that is free now."""
        memory = MemoryBudget.of(self.info)
        if memory.token_bytes:
            self.batch.held_tokens = memory.rows_bytes // memory.token_bytes
        return memory

    def _loaded(self, began_s: float) -> None:
        self.info = msgspec.structs.replace(self.info, load_s=time.monotonic() - began_s)
        # The model stack's objects live as long as the process: no collection need look at them again.
        gc.collect()
        gc.freeze()
        info = self.info
        log(f"{info.name}: {info.model_type}, {info.dtype} on {info.device}, BLAS {info.blas}, {info.threads} threads")

    def _prepare(self, start: Start) -> Prompt:
        prompt = self.tokenize(start)
        prompt_tokens = len(prompt.token_ids)
        max_tokens = max(1, min(start.max_tokens, self.info.context_tokens - prompt_tokens))
        grammar = thinking = None
        if start.constraint is not None:
            grammar = self._grammar(start, max_tokens)
            may_open = start.thinking and self._template.thinks and not prompt.opens_thinking
            thinking = Thinking(
                detokenizer=self.detokenizer,
                opened=prompt.opens_thinking,
                open_token=self._open_token if may_open else None,
            )
        control = RowControl(
            max_tokens=max_tokens,
            sampling=start.sampling,
            grammar=grammar,
            thinking=thinking,
            prompt_ids=prompt.token_ids,
        )
        self._prompt_tokens += prompt_tokens
        return Prompt(
            token_ids=prompt.token_ids,
            inputs=prompt.inputs,
            control=control,
            max_tokens=max_tokens,
            text=TextStream(self.detokenizer),
            answer=Answer(
                stop=start.stop, opened=prompt.opens_thinking, hold=start.thinking and self._template.may_close_only
            ),
        )

    def _grammar(self, start: Start, max_tokens: int) -> Grammar:
        constraint = start.constraint
        assert constraint is not None

        def budget(tokens_left: int) -> Budget | None:
            return self._grammars.budget(constraint, max_tokens, tokens_left)

        matcher = self._grammars.matcher(constraint, max_tokens)
        return Grammar(
            matcher=matcher,
            tokenizer=self._grammars.tokenizer,
            budget=budget,
            forget=lambda: self._grammars.forget(constraint, max_tokens),
        )

    @staticmethod
    def _deltas(row: Row) -> list[Event]:
        if not row.stream or row.prompt is None:
            return []
        text, reasoning = row.prompt.answer.take()
        return [Delta(seq=row.seq, text=text, reasoning=reasoning)] if text or reasoning else []

    def _event(self, row: Row) -> Event:
        if row.error is not None or row.prompt is None:
            error = row.error
            assert error is not None
            return Failed(seq=row.seq, code=error.code, error=str(error))
        self._completion_tokens += len(row.tokens)
        return Finished(
            seq=row.seq,
            text=row.prompt.answer.text,
            reasoning=row.prompt.answer.reasoning,
            finish_reason="stop" if row.finish_reason == "stop" else "length",
            prompt_tokens=len(row.prompt.token_ids),
            completion_tokens=len(row.tokens),
            prefill_s=row.first_token_s - row.admitted_s,
            decode_s=row.finished_s - row.first_token_s,
            peak_memory_bytes=mx.get_peak_memory(),
        )


def engine_info(
    configure: ConfigureEngine,
    blas: Blas,
    *,
    model_type: str,
    context_tokens: int,
    weight_bytes: int,
    dtype: str,
    packages: Sequence[str],
    image_spec: ImageSpec | None = None,
) -> EngineInfo:
    """Return what the handshake tells of a loaded model; `packages` are those whose versions matter."""
    return EngineInfo(
        name=configure.name,
        path=configure.path,
        backend=configure.backend,
        model_type=model_type,
        width=configure.width or DEFAULT_WIDTH,
        context_tokens=context_tokens,
        weight_bytes=weight_bytes,
        dtype=dtype,
        device="gpu" if mx.default_device() == mx.gpu else "cpu",
        blas=blas.name,
        threads=blas.threads,
        load_s=0.0,  # known once it runs
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        image_spec=image_spec,
    )
