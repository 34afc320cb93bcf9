"""The messages of the wire: the one hand-edited definition of the protocol.

A line from client to daemon is a `Request`; its `params` are decoded in a second step with the type that `METHODS`
names, so that bad params still get the right `id`. A line from daemon to client is one of `ResultLine`, `BatchLine`,
`ErrorLine` and, on connections that said `hello`, `EventLine`.

Unknown fields are ignored everywhere: additions are optional fields and new methods.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from vlmd_protocol.limits import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_GENERATE_TOKENS,
    DEFAULT_MAX_TOKENS,
    MAX_BATCH_SIZE,
    MAX_GENERATE_IMAGES,
    MAX_ID_CHARS,
    MAX_IMAGES,
    MAX_MESSAGES,
    MAX_PROMPT_CHARS,
    MAX_REGEX_CHARS,
    MAX_SAFE_INTEGER,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_TOKENS,
    PROTOCOL_VERSION,
)


def _open_to_more(alias: str) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema={"anyOf": [{"$ref": f"#/$defs/{alias}"}, {"type": "string"}]})


# Chosen by the client and echoed on every line of the answer.
Id: TypeAlias = (
    Annotated[int, msgspec.Meta(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]
    | Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]
)
# Why a text ended: by itself or at a stop string, or at its token budget.
FinishReason: TypeAlias = Literal["stop", "length"]
# Whether each frame has a prompt of its own, or `batchSize` of them share one (ADR-006).
Mode: TypeAlias = Literal["parallel", "interleaved"]
# Interactive work goes before batch work.
Priority: TypeAlias = Literal["interactive", "batch"]
# How far a model is. Only `ready` runs requests at once.
ModelState: TypeAlias = Literal["loading", "ready", "failed", "restarting", "unavailable"]
# How far the daemon is. One that drains takes no new work.
DaemonState: TypeAlias = Literal["loading", "ready", "failed", "draining"]
# How the result store is.
CacheState: TypeAlias = Literal["unused", "ready", "degraded", "off"]
# The same four as a daemon sends them: a client takes a value of a newer daemon for one that it does not know.
_OpenFinishReason: TypeAlias = Annotated[str, _open_to_more("FinishReason")]
_OpenModelState: TypeAlias = Annotated[str, _open_to_more("ModelState")]
_OpenDaemonState: TypeAlias = Annotated[str, _open_to_more("DaemonState")]
_OpenCacheState: TypeAlias = Annotated[str, _open_to_more("CacheState")]
# A field that says nothing but that this is the last line of a request.
_True: TypeAlias = Annotated[bool, msgspec.Meta(extra_json_schema={"const": True})]


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of every object on the wire: frozen, camelCase, defaults left out."""


# --- client to daemon -----------------------------------------------------------------------------------------


class Request(Wire, frozen=True, kw_only=True, rename="camel"):
    """A line from the client."""

    id: Id
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


class ClientInfo(Wire, frozen=True, kw_only=True, rename="camel"):
    """Who speaks; for the log."""

    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    version: Annotated[str, msgspec.Meta(max_length=200)] = ""


class HelloParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """Negotiate. After it, a connection may have many requests in flight and gets `EventLine`s."""

    protocol: int = PROTOCOL_VERSION
    client: ClientInfo = ClientInfo()


class NoParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """A method without parameters."""


class ImageRef(Wire, frozen=True, kw_only=True, rename="camel"):
    """One frame: an absolute path, and what labels it.

    `index` and `id` are the caller's own and are echoed in the frame's result.
    """

    image_path: str
    timestamp: int | float | None = None
    index: Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)] | None = None
    id: Id | None = None


class DedupeOptions(Wire, frozen=True, kw_only=True, rename="camel"):
    """When a frame counts as a near-duplicate of the one described last.

    `threshold` is the fraction of the picture's pixels that may have changed. At 0 a frame is a duplicate only where no
    change is left that a codec, a blinking text cursor or a moved mouse pointer does not explain.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class DescribeParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """Describe frames; results come in order, `batch_size` frames a line.

    `max_tokens` is the budget of one prompt of `batch_size` frames (interleaved), or is divided among them (parallel)
    unless `max_tokens_per_frame` is given. With `prompt` the caller's instructions replace ADR-006's; with `schema`
    each result carries a `record` that validates. `grammar` off leaves the model unconstrained.

    Frames of equal bytes are inferred once, unless `dedupe` is false. With `dedupe` so are near-duplicates, and results
    name the frame whose text they carry. `cache` says whether the daemon's result store is asked and filled; left out,
    its configuration decides.

    Requests of one connection that have the same `series`, model and options, and differ in `images` alone, are parts
    of one recording: a later one's frames may be duplicates of an earlier one's. Each image needs an `index` then.
    """

    images: Annotated[list[ImageRef], msgspec.Meta(min_length=1, max_length=MAX_IMAGES)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_SIZE)] = DEFAULT_BATCH_SIZE
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] = DEFAULT_MAX_TOKENS
    max_tokens_per_frame: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    mode: Mode = "parallel"
    model: str | None = None
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = None
    schema: dict[str, Any] | None = None
    grammar: bool = True
    priority: Priority = "batch"
    dedupe: bool | DedupeOptions | None = None
    cache: bool | None = None
    series: Id | None = None


class TextBlock(Wire, frozen=True, kw_only=True, rename="camel", tag_field="type", tag="text"):
    """Text in a message."""

    text: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARS)]


class ImageBlock(Wire, frozen=True, kw_only=True, rename="camel", tag_field="type", tag="image"):
    """A picture in a message: an absolute path."""

    image_path: str


ContentBlock: TypeAlias = TextBlock | ImageBlock


class ChatMessage(Wire, frozen=True, kw_only=True, rename="camel"):
    """One turn of a conversation. Control tokens in its text are plain text."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARS)] | list[ContentBlock]


class PromptParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """What a model is to read: either `prompt`, a single user turn, or `messages`.

    `images` stand before the text of the last user turn. `model` is that of the daemon which the content needs, unless
    it is named. With `thinking` a model that can may think first; what it thinks is kept apart from its text.
    """

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    images: Annotated[list[ImageRef], msgspec.Meta(max_length=MAX_GENERATE_IMAGES)] = []
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] = DEFAULT_GENERATE_TOKENS
    thinking: bool = True
    model: str | None = None


class GenerateParams(PromptParams, frozen=True, kw_only=True, rename="camel"):
    """Generate text. With `stream` it comes in `DeltaLine`s, whose texts together are the final `text`.

    Greedy at `temperature` 0. The same `seed` and input give the same text, alone or beside others. `stop` strings are
    not part of the text; with `schema` or `regex` the whole text matches it, and `stop` is refused.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARS)]],
            msgspec.Meta(min_length=1, max_length=MAX_STOP_STRINGS),
        ]
        | None
    ) = None
    schema: dict[str, Any] | None = None
    regex: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REGEX_CHARS)] | None = None
    stream: bool = True
    priority: Priority = "interactive"


class CancelParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """Cancel the request `target` of the same connection."""

    target: Id


class CacheParams(Wire, frozen=True, kw_only=True, rename="camel"):
    """Look at the result store, or remove everything in it."""

    action: Literal["info", "clear"] = "info"


# --- daemon to client -----------------------------------------------------------------------------------------


class Progress(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Frames delivered so far, and of how many."""

    current: int
    total: int


class FrameResult(Wire, frozen=True, kw_only=True):
    """What one frame shows. A frame that failed has `error` and `code`, its string fields filled all the same.

    Where `dedupe` was asked for, `duplicateOf` is the `index` of an earlier frame whose text this one carries; where
    `cache` was, `cached` tells what came from the result store.
    """

    index: int
    timestamp: int | float | None = msgspec.field(name="timestamp")
    image_path: str = msgspec.field(name="imagePath")
    description: str
    activity: str
    apps: list[str]
    topics: list[str]
    raw_response: str | None = msgspec.field(name="raw_response", default=None)
    record: Any = None
    error: str | None = None
    code: str | None = None
    id: Id | None = None
    duplicate_of: int | None = msgspec.field(name="duplicateOf", default=None)
    cached: bool = False


class BatchLine(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Some frames of a `describe_images`. The last one has ``partial: false`` and ``done: true``."""

    id: Id
    batch: int
    results: list[FrameResult]
    partial: bool
    progress: Progress
    done: _True | msgspec.UnsetType = msgspec.UNSET


class DoneLine(Wire, frozen=True, kw_only=True, rename="camel"):
    """The end of a `describe_images` on a listener for ADR-006's adapter, after the last `BatchLine`."""

    id: Id
    done: _True = msgspec.field(default_factory=lambda: True)


class DeltaLine(Wire, frozen=True, kw_only=True, rename="camel"):
    """A piece of a `generate`: of its text, or of the thinking before it. Never a part of a character."""

    id: Id
    delta: str | None = None
    reasoning_delta: str | None = None


class Usage(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """What a generation took. `tokens_per_s` counts decoding; `time_to_first_token_s` from the request's arrival."""

    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float
    time_to_first_token_s: float
    peak_memory_bytes: int


class GenerateLine(Wire, frozen=True, kw_only=True, rename="camel"):
    """The end of a `generate`: its whole text, and its thinking where the model has any."""

    id: Id
    text: str
    finish_reason: _OpenFinishReason
    usage: Usage
    reasoning: str | None = None
    # A factory, since a default would be left out.
    done: _True = msgspec.field(default_factory=lambda: True)


class CountResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """How long a prompt is, pictures included, and whether it fits with `max_tokens` behind it."""

    prompt_tokens: int
    context_tokens: int
    max_tokens: int
    fits: bool


class ResultLine(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """The answer to a method that answers once."""

    id: Id
    result: Any
    done: _True = True


class ErrorLine(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """The end of a request that failed. `id` is null where the line's own id could not be read."""

    id: Id | None
    error: str
    code: str
    retryable: bool
    data: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    done: _True = True


class EventLine(Wire, frozen=True, kw_only=True, rename="camel"):
    """Unasked news, only on connections that said `hello`: a model's state, or that the daemon drains."""

    event: Literal["model", "draining"]
    model: str | None = None
    state: _OpenModelState | None = None
    stage: str | None = None
    fraction: float | None = None


class Limits(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Limits a client can run into."""

    max_frame_bytes: int
    max_images: int
    max_batch_size: int
    max_tokens: int
    max_in_flight: int
    max_waiting_plain: int
    max_schema_bytes: int


class ModelStatus(Wire, frozen=True, kw_only=True, rename="camel"):
    """A model of this daemon.

    `stage` and `fraction` while it loads; `error` and `code` when it failed or is unavailable, `retryAfterMs` until it
    is started again.
    """

    name: str
    state: _OpenModelState
    kind: str | None = None
    stage: str | None = None
    fraction: float | None = None
    error: str | None = None
    code: str | None = None
    retry_after_ms: int | None = None
    pid: int | None = None
    memory_bytes: int | None = None
    active: int | None = None
    engine: dict[str, Any] | None = None


class HelloResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """What the daemon is and does."""

    protocol: int
    version: str
    pid: int
    state: _OpenDaemonState
    capabilities: list[str]
    limits: Limits
    fingerprint: str
    models: list[ModelStatus]


class PingResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Alive."""

    state: _OpenDaemonState
    uptime_s: float


class QueueStatus(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Frames and jobs in the daemon."""

    jobs: int
    queued: int
    decoding: int
    ready: int
    running: int


class CacheResult(Wire, frozen=True, kw_only=True, rename="camel"):
    """The result store. `warning` says why it is not, or not fully, used; counts are since the daemon's start.

    `state` is ``unused`` until a job asks for it, then ``ready``, ``degraded`` (for a while not written, or not used at
    all) or ``off``. `bytes` is what the file takes on the disk, `removed` how many entries `clear` removed.
    """

    state: _OpenCacheState
    path: str
    enabled: bool
    entries: int | None = None
    bytes: int | None = None
    max_bytes: int
    max_age_s: float
    hits: int = 0
    misses: int = 0
    stored: int = 0
    warning: str | None = None
    removed: int | None = None


class StatusResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Models, queue, memory, and where to look further."""

    version: str
    protocol: int
    pid: int
    state: _OpenDaemonState
    uptime_s: float
    socket: str
    log_file: str | None
    owned: bool
    fingerprint: str
    connections: int
    memory_bytes: int
    models: list[ModelStatus]
    queue: QueueStatus
    image_processes: list[int]
    frames_done: int
    frames_failed: int
    # Fault points that are armed, for tests; a daemon without any has none.
    faults: list[str] = []
    frames_cached: int | msgspec.UnsetType = msgspec.UNSET
    frames_duplicate: int | msgspec.UnsetType = msgspec.UNSET
    cache: CacheResult | msgspec.UnsetType = msgspec.UNSET


class CancelResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """Whether the target was still under way."""

    cancelled: bool


class ShutdownResult(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """The daemon drains."""

    state: _OpenDaemonState = "draining"


Line: TypeAlias = BatchLine | DeltaLine | GenerateLine | ResultLine | ErrorLine | EventLine


class Reply(Wire, frozen=True, kw_only=True, rename="camel"):
    """Any line from the daemon, as a client first reads it: fields that a line lacks are None, `result` is empty.

    msgspec decodes no union with `Raw`: of ``Raw | None`` it takes only the null.
    """

    id: Id | None = None
    result: msgspec.Raw = msgspec.Raw()
    delta: str | None = None
    reasoning_delta: str | None = None
    text: str | None = None
    reasoning: str | None = None
    finish_reason: _OpenFinishReason | None = None
    usage: Usage | None = None
    batch: int | None = None
    results: list[FrameResult] | None = None
    partial: bool | None = None
    progress: Progress | None = None
    error: str | None = None
    code: str | None = None
    retryable: bool = False
    data: dict[str, Any] | None = None
    done: bool = False
    event: str | None = None
    model: str | None = None
    state: str | None = None
    stage: str | None = None
    fraction: float | None = None


METHODS: Final[dict[str, type[Wire]]] = {
    "hello": HelloParams,
    "ping": NoParams,
    "status": NoParams,
    "describe_images": DescribeParams,
    "generate": GenerateParams,
    "count_tokens": PromptParams,
    "cancel": CancelParams,
    "cache": CacheParams,
    "shutdown": NoParams,
}
