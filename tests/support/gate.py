"""The correctness gate's work: prompts of every kind, their rows traced, and rows compared with themselves."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import mlx_vlm
import msgspec
import numpy as np
import pytest
from mlx_vlm.generate import generate_step

from tests.support.engines import Pictures, ask
from vlmd_bridge.engine.backend import Event
from vlmd_bridge.engine.batch import Row
from vlmd_bridge.engine.model_backend import ModelBackend
from vlmd_bridge.engine.template import pictures_of
from vlmd_bridge.engine.vision import VisionBackend
from vlmd_bridge.workers.messages import (
    Constraint,
    Delta,
    Failed,
    Picture,
    RecordConstraint,
    RegexConstraint,
    Sampling,
    SchemaConstraint,
    Start,
    Text,
)

# Float32 sums in another order; the defects this gate is for were 0.5 to 1.9.
TOLERANCE = 1e-3

_INSTRUCTIONS = "Say what this frame shows and what the user does in it.\n"


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One row's tokens, the log-probability of each, and its lead over the next best one that was allowed."""

    tokens: list[int]
    logprobs: list[float]
    leads: list[float]


def requests(pictures: Pictures, unit: int, *, grammar: bool, record_tokens: int = 60) -> list[Start]:
    """Return prompts of mixed length, with one, several and no pictures, whose rows end at different steps.

    With `grammar` an answer has `record_tokens` more.
    """
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
        budget = max_tokens + record_tokens if grammar else max_tokens
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


def mixed(starts: list[Start]) -> list[Start]:
    """Return `starts` with every kind of sampling among them, half of them streamed."""
    return [
        msgspec.structs.replace(start, sampling=_SAMPLINGS[(i - 2) % len(_SAMPLINGS)], stream=i % 2 == 0)
        for i, start in enumerate(starts)
    ]


_SCHEMA = """{"type": "object", "properties": {"title": {"type": "string"}, "count": {"type": "integer"},
    "tags": {"type": "array", "items": {"type": "string"}}}, "required": ["title", "count", "tags"]}"""
_KINDS: tuple[Constraint | None, ...] = (
    RecordConstraint(),
    SchemaConstraint(schema=_SCHEMA),
    None,
    RecordConstraint(),
    RegexConstraint(pattern="[a-z]{2,12}( [a-z0-9]{3}){4}!"),
)


def of_all_kinds(pictures: Pictures, unit: int) -> list[Start]:
    """Return free rows among constrained ones, some sampled, one interleaved, one long enough to outgrow its slot."""
    starts = mixed(requests(pictures, unit, grammar=True, record_tokens=16))
    starts = [
        msgspec.structs.replace(start, constraint=_KINDS[i % len(_KINDS)], sampling=start.sampling)
        for i, start in enumerate(starts)
    ]
    two_frames = RecordConstraint(frame_count=2, labelled=True)
    starts[4] = msgspec.structs.replace(starts[4], constraint=two_frames, max_tokens=80)
    # Slots grow by 256 tokens: this prompt is 9 short of 1,024.
    starts.append(ask(len(starts), "Many words to read before this. " * 33, max_tokens=40))
    return starts


def in_words(starts: list[Start]) -> list[Start]:
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


def stock_rows(backend: VisionBackend, starts: list[Start]) -> dict[int, Traced]:
    """Return what mlx-vlm itself writes for each of `starts`, greedily, with a copy of the model of its own."""
    model, processor = mlx_vlm.load(backend.info.path)
    eos = processor.tokenizer.stopping_criteria.eos_token_ids
    prompts = backend.prompts
    rows = {}
    for start in starts:
        row = rows[start.seq] = Traced(tokens=[], logprobs=[], leads=[])
        raw = prompts._processed(prompts.render(start), [prompts._image(picture) for picture in pictures_of(start)])
        prompt = [raw.pop(name, None) for name in ("input_ids", "pixel_values", "attention_mask")]
        prompt.insert(1, model)
        for token, logprobs in generate_step(*prompt, max_tokens=start.max_tokens, temperature=0.0, **raw):
            if int(token) in eos:
                break
            best = np.sort(np.array(logprobs))[-2:]
            row.tokens.append(int(token))
            row.logprobs.append(float(best[1]))
            row.leads.append(float(best[1] - best[0]))
    return rows


def keep_rows(backend: ModelBackend, monkeypatch: pytest.MonkeyPatch) -> dict[int, Traced]:
    """Return a dict that fills with the trace of each row that ends."""
    traces: dict[int, Traced] = {}
    event = backend._event

    def keep(row: Row) -> Event:
        traces[row.seq] = _traced(row)
        return event(row)

    monkeypatch.setattr(backend, "_event", keep)
    return traces


def run_together(backend: ModelBackend, starts: list[Start], removed: int) -> int:
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
        # What a grammar forced at an answer's end is not computed and has no trace.
        lead = alone.leads[position] if position < len(alone.leads) else float("inf")
        if token != expected and lead < TOLERANCE:
            return None
        traced = position < min(len(together.logprobs), len(alone.logprobs))
        distance = abs(together.logprobs[position] - alone.logprobs[position]) if traced else 0.0
        if token != expected or distance > TOLERANCE:
            return (
                f"token {position}: {token} instead of {expected}, log-probability off by {distance:.4f}, "
                f"lead of the right token {lead:.4f}"
            )
    return None if len(together.tokens) == len(alone.tokens) else "another length"


def run_at_random(backend: ModelBackend, starts: list[Start], seed: int) -> set[int]:
    """Start and remove rows at random times; return those that were removed while they ran."""
    rng = random.Random(seed)
    waiting = rng.sample(starts, len(starts))
    doomed = {start.seq for start in rng.sample(starts, 3)}
    active: list[int] = []
    removed: set[int] = set()
    for _ in range(20_000):
        while waiting and rng.random() < 0.3:
            backend.start(waiting[0])
            active.append(waiting.pop(0).seq)
        if active and rng.random() < 0.1 and (seq := rng.choice(active)) in doomed:
            backend.remove(seq)
            active.remove(seq)
            removed.add(seq)
        for event in backend.step():
            assert not isinstance(event, Failed), event
            if not isinstance(event, Delta):
                active.remove(event.seq)
        if not waiting and not active:
            return removed
    raise TimeoutError


def compare(name: str, together: dict[int, Traced], alone: dict[int, Traced], *, removed: set[int]) -> None:
    """Fail where a row differs from itself; those of `removed` did not end."""
    assert together.keys() == alone.keys() - removed
    differences = {seq: _difference(together[seq], alone[seq]) for seq in together}
    compared = sum(len(trace.tokens) for trace in together.values())
    worst = max(
        distance
        for seq in together
        for a, b in zip(together[seq].logprobs, alone[seq].logprobs, strict=False)
        if not math.isnan(distance := abs(a - b))
    )
    print(f"{name}: {compared} tokens of {len(together)} rows, log-probabilities at most {worst:.1e} apart")
    wrong = {seq: text for seq, text in differences.items() if text}
    assert not wrong, f"{name}: {wrong}"
    assert compared > 60
