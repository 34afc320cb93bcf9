"""The correctness gate: a row of a batch gets the tokens and log-probabilities that it gets alone, seeded rows too.

mlx-vlm's batching has been silently wrong (rows prefilled together lose deepstack features; chunked prefill with
images), so this decides whether a version or a change may be used.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from tests.engine.conftest import TinyPath
from tests.support.engines import Pictures, ask, run_alone, text_backend, vision_backend
from tests.support.tiny_models import TINY_VISION_MODELS
from tests.support.tiny_text_models import TINY_TEXT_MODELS
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.batch import Row
from vlmd_bridge.engine.model_backend import ModelBackend
from vlmd_bridge.workers.messages import (
    Delta,
    Failed,
    Picture,
    RecordConstraint,
    RegexConstraint,
    Sampling,
    Start,
    Text,
)

pytestmark = pytest.mark.model

# Float32 sums in another order; the defects this gate is for were 0.5 to 1.9.
TOLERANCE = 1e-3

_INSTRUCTIONS = "Say what this frame shows and what the user does in it.\n"


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One row's tokens, the log-probability of each, and its lead over the next best one that was allowed."""

    tokens: list[int]
    logprobs: list[float]
    leads: list[float]


def _requests(pictures: Pictures, unit: int, *, grammar: bool) -> list[Start]:
    """Return prompts of mixed length, with one, several and no pictures, whose rows end at different steps."""
    constraint = RecordConstraint() if grammar else None
    lengths = [30, 12, 40, 6, 25, 18, 33, 9, 21, 21, 15]
    starts = []
    for seq, max_tokens in enumerate(lengths):
        # The last two differ in the pixels of their picture alone.
        shape = min(seq, 9)
        picture = pictures.random(seq, unit * (3 + shape % 3), unit * (3 + shape % 2))
        # Most begin alike, for at least as many tokens as a shared prefix must have.
        instructions = _INSTRUCTIONS if seq % 4 else "Look. "
        parts: list[object] = [instructions, f"Frame {shape}:", picture]
        if seq == 4:
            parts += ["Frame 2:", pictures.random(99, unit * 4, unit * 3), "Compare the two."]
        if seq == 6:
            parts = [_INSTRUCTIONS, "No picture at all, only words. " * 3]
        budget = max_tokens + 60 if grammar else max_tokens
        starts.append(ask(seq, *parts, max_tokens=budget, constraint=constraint))  # type: ignore[arg-type]
    return starts


# One of each kind, and all at once; what is forbidden here is that a row's draw depends on its neighbours.
_SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.8, seed=11),
    Sampling(temperature=1.2, seed=12, top_p=0.9, top_k=40),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.7, seed=13, top_p=0.8),
    Sampling(temperature=1.0, seed=11, top_k=5, repetition_penalty=1.1),
)


def _mixed(starts: list[Start]) -> list[Start]:
    """Return `starts` with every kind of sampling among them, half of them streamed."""
    return [
        msgspec.structs.replace(start, sampling=_SAMPLINGS[(i - 2) % len(_SAMPLINGS)], stream=i % 2 == 0)
        for i, start in enumerate(starts)
    ]


def _in_words(starts: list[Start]) -> list[Start]:
    """Return `starts` without their pictures, of lengths as mixed."""
    return [
        msgspec.structs.replace(
            start,
            parts=tuple(
                Text(text=f"A picture {part.width} wide. " * (part.offset % 7)) if isinstance(part, Picture) else part
                for part in start.parts
            ),
        )
        for start in starts
    ]


def _traced(row: Row) -> Traced:
    assert row.error is None and row.prompt is not None
    trace = row.prompt.control.trace[: len(row.tokens)]
    return Traced(
        tokens=row.tokens,
        logprobs=[float(str(logprob.item())) for logprob, _ in trace],
        leads=[float(str(lead.item())) for _, lead in trace],
    )


def _keep_rows(backend: ModelBackend, monkeypatch: pytest.MonkeyPatch) -> dict[int, Traced]:
    """Return a dict that fills with the trace of each row that ends."""
    traces: dict[int, Traced] = {}
    event = backend._event

    def keep(row: Row) -> Event:
        traces[row.seq] = _traced(row)
        return event(row)

    monkeypatch.setattr(backend, "_event", keep)
    return traces


def _run_together(backend: ModelBackend, starts: list[Start], removed: int) -> int:
    """Start rows one by one while others run, remove one in the middle of its answer; return the most that ran."""
    widest = 0
    waiting = list(starts)
    ended: set[int] = set()
    for step in range(5_000):
        if waiting and step % 3 == 0:
            backend.start(waiting.pop(0))
        if step == 3 * removed + 8:
            backend.remove(removed)
            ended.add(removed)
        for event in backend.step():
            assert not isinstance(event, Failed), event
            if not isinstance(event, Delta):
                ended.add(event.seq)
        widest = max(widest, backend.batch.running)
        if len(ended) == len(starts):
            return widest
    raise TimeoutError


def _difference(together: Traced, alone: Traced) -> str | None:
    """Return what differs, or None. Behind a toss-up between two tokens the rows may go on differently."""
    for position, (token, expected) in enumerate(zip(together.tokens, alone.tokens, strict=False)):
        if token != expected and alone.leads[position] < TOLERANCE:
            return None
        distance = abs(together.logprobs[position] - alone.logprobs[position])
        if token != expected or distance > TOLERANCE:
            return (
                f"token {position}: {token} instead of {expected}, log-probability off by {distance:.4f}, "
                f"lead of the right token {alone.leads[position]:.4f}"
            )
    return None if len(together.tokens) == len(alone.tokens) else "another length"


def _compare(name: str, together: dict[int, Traced], alone: dict[int, Traced]) -> None:
    """Fail where a row differs from itself; 2 was removed."""
    assert together.keys() == alone.keys() - {2}
    differences = {seq: _difference(together[seq], alone[seq]) for seq in together}
    compared = sum(len(trace.tokens) for trace in together.values())
    worst = max(
        abs(a - b) for seq in together for a, b in zip(together[seq].logprobs, alone[seq].logprobs, strict=False)
    )
    print(f"{name}: {compared} tokens of {len(together)} rows, log-probabilities at most {worst:.1e} apart")
    assert not {seq: text for seq, text in differences.items() if text}
    assert compared > 60


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("name", [model.name for model in TINY_VISION_MODELS])
def test_a_batched_row_equals_the_row_alone(
    name: str, grammar: bool, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures()
    unit = 28 if name.startswith("qwen2_5") else 32
    with vision_backend(tiny_path(name), pictures, width=4, trace=True) as backend:
        starts = _mixed(_requests(pictures, unit, grammar=grammar))
        traces = _keep_rows(backend, monkeypatch)
        assert _run_together(backend, starts, removed=2) == 4
        together = dict(traces)
        traces.clear()
        assert backend.prefixes is not None
        saved_tokens = backend.prefixes.saved_tokens
        backend.batch.close()
        backend.prefixes = None
        for start in starts:
            run_alone(backend, start)
    _compare(name, together, traces)
    assert saved_tokens > 100  # else nothing was said about rows with a shared prefix


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("name", [model.name for model in TINY_TEXT_MODELS])
def test_a_batched_text_row_equals_the_row_alone(
    name: str, grammar: bool, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with text_backend(tiny_path(name), width=4, trace=True) as backend:
        starts = _mixed(_in_words(_requests(Pictures(), 32, grammar=grammar)))
        if grammar:  # one kind beside the other
            pattern = RegexConstraint(pattern="[a-z]{2,12}( [a-z0-9]{3}){4}!")
            starts[1::3] = [msgspec.structs.replace(start, constraint=pattern) for start in starts[1::3]]
        traces = _keep_rows(backend, monkeypatch)
        assert _run_together(backend, starts, removed=2) == 4
        together = dict(traces)
        traces.clear()
        for start in starts:
            run_alone(backend, start)
    _compare(name, together, traces)
