"""How each method is answered, and which fields go with one another: what the types of the Structs do not say.

Schema, TypeScript types and reference tables are made from these tables too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from vlmd_protocol.messages import (
    BatchLine,
    CacheResult,
    CancelResult,
    CountResult,
    DeltaLine,
    EventLine,
    GenerateLine,
    GenerateParams,
    HelloResult,
    PingResult,
    PromptParams,
    ShutdownResult,
    StatusResult,
    Wire,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How a method is answered where nothing fails.

    Attributes:
        meaning: what the method does.
        result: what its `ResultLine` carries; None where it ends with a line of its own form.
        lines: the lines of its own form: those before the end, then the last one.
    """

    meaning: str
    result: type[Wire] | None = None
    lines: tuple[type[Wire], ...] = ()


ANSWERS: Final[dict[str, Answer]] = {
    "hello": Answer(meaning="negotiate: protocol number, capabilities, limits, models", result=HelloResult),
    "ping": Answer(meaning="answered at once, also while a model loads or runs", result=PingResult),
    "status": Answer(meaning="models, queue, memory, log file; at once", result=StatusResult),
    "describe_images": Answer(meaning="one record for each frame, in batches with progress", lines=(BatchLine,)),
    "generate": Answer(meaning="text for a prompt or a conversation", lines=(DeltaLine, GenerateLine)),
    "count_tokens": Answer(meaning="how long a prompt is, and whether it fits", result=CountResult),
    "cancel": Answer(meaning="end a request of the same connection", result=CancelResult),
    "cache": Answer(meaning="look at the result store, or empty it", result=CacheResult),
    "shutdown": Answer(meaning="finish what runs, then end the daemon", result=ShutdownResult),
}

# Fields that go with one another: one of the variants holds, or several where they do not exclude one another. True,
# False and a text are the field's value, `...` that it is there, None that it is not.
Variant: TypeAlias = dict[str, Any]
VARIANTS: Final[dict[type[Wire], tuple[Variant, ...]]] = {
    PromptParams: ({"prompt": ..., "messages": None}, {"messages": ..., "prompt": None}),
    GenerateParams: ({"prompt": ..., "messages": None}, {"messages": ..., "prompt": None}),
    BatchLine: ({"partial": True, "done": None}, {"partial": False, "done": ...}),
    DeltaLine: ({"delta": ...}, {"reasoning_delta": ...}),
    EventLine: (
        {"event": "model", "model": ..., "state": ...},
        {"event": "draining", "model": None, "state": None, "stage": None, "fraction": None},
    ),
}
