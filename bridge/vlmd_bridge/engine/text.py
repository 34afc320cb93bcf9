"""The text backend: one language model through mlx-lm. Importing this imports MLX: `choose_blas` first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm

from vlmd_bridge.engine.backend import LoadError, ReportLoading, SequenceError
from vlmd_bridge.engine.batch import Batch, Generator
from vlmd_bridge.engine.grammar.grammars import Grammars
from vlmd_bridge.engine.model_backend import ModelBackend, Tokenized, engine_info
from vlmd_bridge.engine.platform import Blas, limit_memory
from vlmd_bridge.engine.rows.text_rows import TextRows
from vlmd_bridge.engine.sampling import BatchSampler
from vlmd_bridge.engine.switches import ALL_ON, Switches
from vlmd_bridge.engine.template import ChatTemplate, check_context, pictures_of
from vlmd_bridge.engine.weights import LOAD_ERRORS, fit_to_device, weight_bytes, weight_dtype
from vlmd_bridge.workers.messages import ConfigureEngine, Count, EngineInfo, Start, Text

# Where neither the configuration nor the tokenizer names a context; the latter then says 1e30.
_UNKNOWN_CONTEXT = 4096
_MAX_CONTEXT = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCheckpoint:
    """A loaded text model. `tokenizer` is transformers'."""

    model: Any
    tokenizer: Any
    model_type: str
    eos_token_ids: list[int]
    context_tokens: int


def load_text_checkpoint(path: str) -> TextCheckpoint:
    """Load the folder at `path`. Nothing is fetched, and no code of the folder runs.

    Raises:
        LoadError: mlx-lm refuses it. What can be told without loading, `vlmd_bridge.models.probe` has told already.
    """
    folder = Path(path)
    if not folder.is_dir():  # mlx_lm.load would take it for the name of a repository
        raise LoadError("model_not_found", f"{path} is not a folder")
    try:
        model, wrapper, config = mlx_lm.load(str(folder), lazy=True, return_config=True)
    except LOAD_ERRORS as error:
        raise LoadError("model_load_failed", f"mlx-lm cannot load {path}: {type(error).__name__}: {error}") from error
    fit_to_device(model)
    text = config.get("text_config") or config
    context = int(text.get("max_position_embeddings") or wrapper._tokenizer.model_max_length)
    return TextCheckpoint(
        model=model,
        tokenizer=wrapper._tokenizer,
        model_type=str(config["model_type"]),
        eos_token_ids=sorted(wrapper.eos_token_ids),
        context_tokens=context if context < _MAX_CONTEXT else _UNKNOWN_CONTEXT,
    )


class TextBackend(ModelBackend):
    """See `Backend`."""

    def __init__(
        self, checkpoint: TextCheckpoint, info: EngineInfo, *, switches: Switches = ALL_ON, trace: bool = False
    ) -> None:
        """`trace` keeps the log-probabilities of every row on its control, for the correctness gate."""
        grammars = Grammars(checkpoint.tokenizer, checkpoint.eos_token_ids)
        self.template = ChatTemplate(checkpoint.tokenizer, checkpoint.tokenizer, sees=False)
        super().__init__(info, checkpoint.tokenizer, grammars, self.template)
        self._tokenizer = checkpoint.tokenizer
        self.model = checkpoint.model
        self.eos_token_ids = checkpoint.eos_token_ids

        def rows(batch: Batch) -> Generator:
            return TextRows(checkpoint.model, checkpoint.eos_token_ids, width=batch.width, sampler=batch.sampler)

        sampler = BatchSampler(grammars.vocab_size, trace=trace, batched_masks=switches.batched_masks)
        self.batch = Batch(rows, width=info.width, sampler=sampler)

    @classmethod
    def load(cls, configure: ConfigureEngine, report: ReportLoading, blas: Blas, *, trace: bool = False) -> TextBackend:
        """Load the model folder that `configure` names.

        Raises:
            LoadError: mlx-lm cannot load it.
        """
        began_s = time.monotonic()
        report("weights", 0.3)
        limit_memory(mx)
        checkpoint = load_text_checkpoint(configure.path)
        report("warming", 0.9)
        info = engine_info(
            configure,
            blas,
            model_type=checkpoint.model_type,
            context_tokens=checkpoint.context_tokens,
            weight_bytes=weight_bytes(checkpoint.model),
            dtype=weight_dtype(checkpoint.model),
            packages=("mlx", "mlx-lm", "llguidance", "transformers"),
        )
        backend = cls(checkpoint, info, switches=Switches.without(configure.off), trace=trace)
        backend._warm_up(Start(seq=-1, parts=(Text(text="Hello"),), max_tokens=2))
        backend._bound_memory()
        backend._loaded(began_s)
        return backend

    def tokenize(self, start: Start) -> Tokenized:
        """Render and tokenize."""
        token_ids, opens_thinking = self._tokens(start)
        check_context(len(token_ids), self.info.context_tokens)
        return Tokenized(token_ids=token_ids, inputs={}, opens_thinking=opens_thinking)

    def count_tokens(self, count: Count) -> int:
        """Count text."""
        return len(self._tokens(count)[0])

    def _tokens(self, prompt: Start | Count) -> tuple[list[int], bool]:
        if pictures_of(prompt):
            raise SequenceError("vision_unsupported", f"{self.info.name} is a text model and takes no pictures")
        rendered = self.template.render(prompt)
        begin = self._tokenizer.bos_token
        # Some templates write the token that begins a text, others leave it to the tokenizer.
        add_special_tokens = begin is not None and not rendered.startswith(begin)
        token_ids = list(self._tokenizer.encode(rendered, add_special_tokens=add_special_tokens))
        return token_ids, self.template.opens_thinking(rendered)
