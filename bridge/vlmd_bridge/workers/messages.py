"""Messages between the daemon and its worker processes; `framing` puts them on a socketpair.

Both sides are the same version of vlmd, so nothing here is negotiated and every type is a tagged Struct.

A worker is started as ``python -m vlmd_bridge.engine.process --link-fd N --arena-fd M`` (or
``vlmd_bridge.images.process``), reads its `Configure*` message first, answers `Loading`… and then `EngineReady`,
`LoadFailed` or `ImagesReady`. It exits with status 0 at EOF of the socketpair or at `Close`.
"""

from __future__ import annotations

import signal
from typing import Literal, TypeAlias

import msgspec

# Has a worker write the stacks of its threads to standard error.
STACKS_SIGNAL = signal.SIGUSR1


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str, omit_defaults=True):
    """Base of every message: a frozen Struct tagged by its class name."""


# --- pictures -------------------------------------------------------------------------------------------------


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wants its pictures to be.

    A picture is resized so that both sides are multiples of `factor` and its area lies within the pixel bounds,
    keeping its aspect ratio (Qwen-VL's "smart resize"). With `factor` 1 it is only shrunk to `max_pixels`, and the
    model's own processor does the rest.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    max_aspect_ratio: float

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest RGB picture the spec admits."""
        return self.max_pixels * 3


class Picture(Message, frozen=True, kw_only=True, tag="picture"):
    """RGB8 pixels, rows first, `width * height * 3` bytes at `offset` of the arena."""

    offset: int
    width: int
    height: int


# --- engine ---------------------------------------------------------------------------------------------------


class ConfigureEngine(Message, frozen=True, kw_only=True, tag="configure_engine"):
    """First message to an engine worker.

    `path` is a local folder (a resolved model) or, for the fake backend, its options. `threads` is how many BLAS
    threads the engine may use, 0 for its own choice. `width` is the batch width, 0 for the backend's own choice. `off`
    are the optimisations that it does without (`engine.switches`).
    """

    backend: Literal["vision", "text", "fake"]
    name: str
    path: str
    width: int = 0
    threads: int = 0
    off: tuple[str, ...] = ()


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine is; `status` shows it as it stands."""

    name: str
    path: str
    backend: str
    model_type: str
    width: int
    context_tokens: int
    weight_bytes: int
    dtype: str
    device: str
    blas: str
    threads: int
    load_s: float
    versions: dict[str, str]
    image_spec: ImageSpec | None = None


class Loading(Message, frozen=True, kw_only=True, tag="loading"):
    """A stage of loading began: ``importing``, ``weights``, ``warming``; `fraction` of the whole, 0 to 1."""

    stage: str
    fraction: float


class EngineReady(Message, frozen=True, kw_only=True, tag="engine_ready"):
    """The model is loaded and sequences are admitted."""

    pid: int
    info: EngineInfo


class LoadFailed(Message, frozen=True, kw_only=True, tag="load_failed"):
    """The model cannot be loaded; `code` is one of the request codes of the protocol. The worker then exits."""

    code: str
    error: str


class Text(Message, frozen=True, kw_only=True, tag="text"):
    """A run of text in a user turn. Control tokens inside are plain text."""

    text: str


Part: TypeAlias = Text | Picture


class RecordConstraint(Message, frozen=True, kw_only=True, tag="record"):
    """The answer is `frame_count` records in text form; with `labelled`, each line begins ``Frame i: ``."""

    frame_count: int = 1
    labelled: bool = False


class SchemaConstraint(Message, frozen=True, kw_only=True, tag="schema"):
    """The answer is JSON that validates against `schema` (JSON Schema, as text, at most 64 KiB)."""

    schema: str


class RegexConstraint(Message, frozen=True, kw_only=True, tag="regex"):
    """The answer matches `pattern` as a whole."""

    pattern: str


Constraint: TypeAlias = RecordConstraint | SchemaConstraint | RegexConstraint


class Turn(Message, frozen=True, kw_only=True, tag="turn"):
    """An earlier turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a row's next token is chosen: greedy at `temperature` 0, else with a seed of its own."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


class Start(Message, frozen=True, kw_only=True, tag="start"):
    """Run one sequence: a user turn of `parts` behind the turns of `history`.

    With `stream` its text comes in `Delta`s as well. `stop` strings end it and are no part of its text. With `thinking`
    the model's template may open a thinking part, which is kept apart from the text and comes before any constraint.
    The daemon holds back sequences beyond the worker's credits (its width + 2), so the worker queues at most two. One
    for which somebody waits is `front`: it comes beyond the credits, is admitted first, and has slots kept for it.
    """

    seq: int
    parts: tuple[Part, ...]
    max_tokens: int
    history: tuple[Turn, ...] = ()
    constraint: Constraint | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stream: bool = False
    thinking: bool = False
    front: bool = False


class Count(Message, frozen=True, kw_only=True, tag="count"):
    """Tell how many tokens the prompt of a `Start` with these turns would have. Answered by `Counted` or `Failed`."""

    seq: int
    parts: tuple[Part, ...]
    history: tuple[Turn, ...] = ()
    thinking: bool = False


class Remove(Message, frozen=True, kw_only=True, tag="remove"):
    """Take `seq` out, whatever its state. The worker answers `Removed`, unless `Finished` or `Failed` came first."""

    seq: int


class Close(Message, frozen=True, kw_only=True, tag="close"):
    """Release the model and exit. Sequences that still run are dropped."""


class Delta(Message, frozen=True, kw_only=True, tag="delta"):
    """A piece of a sequence's text, or of its thinking; whole characters, nothing that could yet be a stop string."""

    seq: int
    text: str = ""
    reasoning: str = ""


class Finished(Message, frozen=True, kw_only=True, tag="finished"):
    """The sequence ended: its whole text. `finish_reason` is ``stop`` or ``length``.

    `prefill_s` is from admission to the first token, `decode_s` from there to the end.
    """

    seq: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    prefill_s: float
    decode_s: float
    reasoning: str | None = None
    peak_memory_bytes: int = 0


class Counted(Message, frozen=True, kw_only=True, tag="counted"):
    """The answer to `Count`."""

    seq: int
    prompt_tokens: int
    context_tokens: int


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The sequence failed; `code` is one of the frame codes of the protocol.

    `together`: with all that had begun, in a step that they shared. Whose fault it was is not known.
    """

    seq: int
    code: str
    error: str
    together: bool = False


class Removed(Message, frozen=True, kw_only=True, tag="removed"):
    """The sequence is out and its slot and its pictures may be used again."""

    seq: int


class Beat(Message, frozen=True, kw_only=True, tag="beat"):
    """Sent about once a second while sequences run, from the thread that steps: its absence means a hang."""

    steps: int
    active: int
    prompt_tokens: int
    completion_tokens: int
    active_memory_bytes: int
    cache_memory_bytes: int


ToEngine: TypeAlias = ConfigureEngine | Start | Count | Remove | Close
FromEngine: TypeAlias = Loading | EngineReady | LoadFailed | Delta | Finished | Counted | Failed | Removed | Beat
