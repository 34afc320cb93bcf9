"""The keywords of `generate` and `count_tokens`, written down once for both clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from vlmd._ask import Ask
from vlmd._core import ClientCore
from vlmd._generate import GenerateRun
from vlmd._images import ImageLike
from vlmd._prompt import Prompt, PromptFields, has_pictures, prompt_fields
from vlmd._schema import schema_of
from vlmd._settings import model_name
from vlmd._timeouts import Timeouts
from vlmd_protocol.limits import DEFAULT_GENERATE_TOKENS
from vlmd_protocol.messages import GenerateParams, Priority, PromptParams


class CountOptions(TypedDict, total=False):
    """Keywords of `count_tokens`.

    Attributes:
        images: pictures before the text of the last turn.
        max_tokens: length of the answer that is to fit behind the prompt, 512 by default.
        thinking: False for a model's template without thinking.
        model: asked for by name; by default the one that the prompt needs.
        timeouts: instead of the client's.
        resume: instead of the client's: whether to ask a new daemon where the first was lost.
    """

    images: Iterable[ImageLike]
    max_tokens: int
    thinking: bool
    model: str | None
    timeouts: Timeouts | None
    resume: bool | None


class GenerateOptions(CountOptions, total=False):
    """Keywords of `generate`, besides those of `count_tokens`; there, `max_tokens` ends the text.

    Attributes:
        temperature: 0 (default) for the likeliest text, up to 2.
        top_p: share of the likeliest tokens that are sampled from.
        top_k: number of the likeliest tokens that are sampled from, 0 for all.
        repetition_penalty: above 1, what was said is said less likely again.
        seed: the same seed and input give the same text.
        stop: strings that end the text and are no part of it; not with a schema or regex.
        regex: that the whole text matches; not with a schema.
        priority: ``interactive`` (default) goes before ``batch``.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    regex: str | None
    priority: Priority


def start_generate(
    core: ClientCore,
    prompt: Prompt,
    *,
    schema: object = None,
    images: Iterable[ImageLike] = (),
    max_tokens: int = DEFAULT_GENERATE_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    regex: str | None = None,
    thinking: bool = True,
    model: str | None = None,
    priority: Priority = "interactive",
    timeouts: Timeouts | None = None,
    resume: bool | None = None,
) -> GenerateRun[Any]:
    """Return the run of one `generate` call; nothing is asked yet."""
    core.check_open()
    found = schema_of(schema)
    fields = prompt_fields(prompt, images)
    params = GenerateParams(
        **fields,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=None if stop is None else [stop] if isinstance(stop, str) else list(stop),
        schema=None if found is None else found.document,
        regex=regex,
        thinking=thinking,
        model=_model(core, model, fields),
        priority=priority,
    )
    return GenerateRun(core, _ask(core, "generate", params, timeouts, resume=resume), found)


def start_count(
    core: ClientCore,
    prompt: Prompt,
    *,
    images: Iterable[ImageLike] = (),
    max_tokens: int = DEFAULT_GENERATE_TOKENS,
    thinking: bool = True,
    model: str | None = None,
    timeouts: Timeouts | None = None,
    resume: bool | None = None,
) -> Ask:
    """Return the request of one `count_tokens` call; nothing is asked yet."""
    core.check_open()
    fields = prompt_fields(prompt, images)
    model = _model(core, model, fields)
    params = PromptParams(**fields, max_tokens=max_tokens, thinking=thinking, model=model)
    return _ask(core, "count_tokens", params, timeouts, resume=resume)


def _ask(core: ClientCore, method: str, params: PromptParams, timeouts: Timeouts | None, *, resume: bool | None) -> Ask:
    return Ask(
        core,
        method,
        params,
        core.settings.timeouts if timeouts is None else timeouts,
        resume=core.settings.resume if resume is None else resume,
    )


def _model(core: ClientCore, model: str | None, fields: PromptFields) -> str | None:
    if model is None and core.settings.ownership != "owned":
        # A shared daemon may have been started with another. A private one chooses by the content.
        text_model = None if has_pictures(fields) else core.settings.text_model
        model = text_model or core.settings.model
    return model_name(model)
