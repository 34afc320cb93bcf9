"""The keywords that both clients take, written down once."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any, TypedDict

from vlmd._core import ClientCore
from vlmd._describe import DescribeRun
from vlmd._images import ImageLike, Source
from vlmd._job import DescribeJob
from vlmd._results import Progress
from vlmd._schema import schema_of
from vlmd._settings import model_name
from vlmd._timeouts import Timeouts
from vlmd_protocol.limits import DEFAULT_BATCH_SIZE, DEFAULT_MAX_TOKENS
from vlmd_protocol.messages import DedupeOptions, DescribeParams, ImageRef, Mode, Priority

# Stands where each request's own images go; never sent.
_NO_IMAGES = [ImageRef(image_path="")]


class ClientOptions(TypedDict, total=False):
    """Keywords of a client.

    Attributes:
        text_model: that a started daemon loads beside its model, for prompts without pictures.
        shared: True for the user's one shared daemon, started if there is none; False for a private daemon whatever
            ``VLMD_SOCKET`` says; by default a private one unless ``VLMD_SOCKET`` names a socket. A private daemon ends
            with its client, or with this process however that ends.
        socket: of a shared daemon elsewhere.
        start: False to attach to a running daemon only.
        command: words before ``serve``, to start a daemon with; a string is split like a shell's.
        python: interpreter to start a daemon with.
        timeouts: deadlines.
        resume: whether `describe` goes on with the remaining frames after its daemon was lost; True by default.
        log: gets every line of the log, prefixed ``[VLM] ``, a private daemon's own included, possibly on background
            threads; by default they go to the logger ``vlmd.client``.
    """

    text_model: str | None
    shared: bool | None
    socket: str | os.PathLike[str] | None
    start: bool
    command: str | Sequence[str] | None
    python: str | os.PathLike[str] | None
    timeouts: Timeouts | None
    resume: bool
    log: Callable[[str], None] | None


class DescribeOptions(TypedDict, total=False):
    """Keywords of `describe` and `describe_all`.

    Attributes:
        batch_size: frames of one batch, 4 by default; in mode ``interleaved`` also of one prompt.
        max_tokens: budget of one batch.
        max_tokens_per_frame: budget of one frame, in mode ``parallel``.
        mode: ``parallel`` (default) for each frame on its own, ``interleaved`` for frames that explain each other.
        model: asked for by name; by default the daemon's.
        prompt: instructions instead of the built-in ones.
        grammar: False leaves the model's output unconstrained.
        priority: ``interactive`` goes before ``batch`` (default).
        dedupe: True to describe only frames that differ from the last described one by more than a codec's noise, a
            blinking text cursor or a moved mouse pointer; a number from 0 to 1 is the fraction of the pixels that may
            differ beyond that. The other frames carry that one's text and name it in `duplicate_of`. In any case frames
            of equal bytes are inferred once, unless this is False. A list is asked for in requests of 256 frames, what
            comes slowly in smaller ones; each goes on from the last that has ended, on the same connection.
        cache: True to have the daemon's result store asked and filled, False to have it left alone; by default its
            configuration decides.
        on_progress: called in the caller's thread or task before each batch is returned.
        timeouts: instead of the client's.
        resume: instead of the client's.
    """

    batch_size: int
    max_tokens: int
    max_tokens_per_frame: int | None
    mode: Mode
    model: str | None
    prompt: str | None
    grammar: bool
    priority: Priority
    dedupe: bool | float | None
    cache: bool | None
    on_progress: Callable[[Progress], None] | None
    timeouts: Timeouts | None
    resume: bool | None


def start_run(
    core: ClientCore,
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
    *,
    schema: object = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    max_tokens_per_frame: int | None = None,
    mode: Mode = "parallel",
    model: str | None = None,
    prompt: str | None = None,
    grammar: bool = True,
    priority: Priority = "batch",
    dedupe: bool | float | None = None,
    cache: bool | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    timeouts: Timeouts | None = None,
    resume: bool | None = None,
) -> DescribeRun[Any]:
    """Return the run of one `describe` call; nothing is read or asked yet."""
    core.check_open()
    found = schema_of(schema)
    if model is None and core.settings.ownership != "owned":
        model = core.settings.model  # a shared daemon may have been started with another
    options = DescribeParams(
        images=_NO_IMAGES,
        batch_size=batch_size,
        max_tokens=max_tokens,
        max_tokens_per_frame=max_tokens_per_frame,
        mode=mode,
        model=model_name(model),
        prompt=prompt,
        schema=None if found is None else found.document,
        grammar=grammar,
        priority=priority,
        dedupe=dedupe if dedupe is None or isinstance(dedupe, bool) else DedupeOptions(threshold=dedupe),
        cache=cache,
    )
    source = Source(images, core.runtime)
    return DescribeRun(
        core,
        source,
        DescribeJob(options, source.total, found),
        core.settings.timeouts if timeouts is None else timeouts,
        resume=core.settings.resume if resume is None else resume,
        on_progress=on_progress,
    )
