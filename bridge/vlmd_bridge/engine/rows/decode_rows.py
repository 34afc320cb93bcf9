"""Rows of a vision model with a decode loop of our own, over mlx-vlm's models, as a `Generator`.

A step is the prefill of one row or a decode step of all. What a decode step chose is waited for by the next one, so
that the caller reads text and prepares prompts while the device computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx
from mlx_vlm.generate import wired_limit

from vlmd_bridge.engine.batch import Produced, Prompt
from vlmd_bridge.engine.control import RowControl
from vlmd_bridge.engine.rows.language import Language, rope_delta
from vlmd_bridge.engine.rows.prefix import Prefixes
from vlmd_bridge.engine.sampling import BatchSampler, penalised

# A row may append as many known tokens at once as this share of the rows has: a further column of attention costs the
# demo model on a CPU about what a fifth of its rows' next step does. Larger models and GPUs pay less for it.
_FULL_COLUMN = 0.2


@dataclass(kw_only=True, slots=True)
class _Row:
    """A row from its prefill on. `ahead` are tokens known but not in its slot yet; `length` are those that are."""

    uid: int
    prompt: Prompt
    slot: int = -1
    length: int = 0
    delta: int = 0
    produced: int = 0
    ahead: list[int] = field(default_factory=list)
    # What the grammar forced at the answer's start, until it is handed out with the first token that was chosen.
    opening: list[int] = field(default_factory=list)
    gone: bool = False

    @property
    def control(self) -> RowControl:
        return self.prompt.control


class DecodeRows:
    """See `Generator`."""

    def __init__(
        self,
        language: Language,
        eos_token_ids: Collection[int],
        *,
        sampler: BatchSampler,
        prefixes: Prefixes | None,
        forced_tokens: bool,
    ) -> None:
        self._language = language
        self._eos = frozenset(eos_token_ids)
        self._sampler = sampler
        self._prefixes = prefixes
        self._forced_tokens = forced_tokens
        self._waiting: deque[_Row] = deque()
        self._rows: dict[int, _Row] = {}  # those that have joined, by uid, in the order of joining
        self._chosen: list[tuple[list[_Row], mx.array]] = []
        self._next_uid = 0
        self._decoded = True
        self._wired = ExitStack()
        self._wired.enter_context(wired_limit(language.model, [mx.default_stream(mx.default_device())]))

    def room(self) -> int:
        """Return 1 when no row waits for its prefill, so that a removal takes effect before the next one's."""
        return 0 if self._waiting else 1

    def insert(self, prompt: Prompt) -> int:
        """Take a row."""
        self._next_uid += 1
        self._waiting.append(_Row(uid=self._next_uid, prompt=prompt))
        return self._next_uid

    def next(self) -> list[Produced]:
        """Prefill the row that waits, or decode, in turns: rows that begin apart end apart, and lines come evenly."""
        if self._waiting and (self._decoded or not self._rows):
            self._decoded = False
            return self._prefill(self._waiting.popleft())
        self._decoded = True
        produced = [self._advance(row, token) for row, token in self._collect()]
        self._launch()
        return produced

    def remove(self, uid: int) -> None:
        """Let a row go."""
        if uid in self._rows:
            self._release(self._rows[uid])
        self._waiting = deque(row for row in self._waiting if row.uid != uid)

    def close(self) -> None:
        """Release the wired limit, the shared prefixes and the memory of all slots."""
        if self._prefixes is not None:
            self._prefixes.clear()
        self._language.clear()
        self._wired.close()

    def _prefill(self, row: _Row) -> list[Produced]:
        prompt = row.prompt
        reason = self._force(row, row.opening) if self._forced_tokens else None
        if reason is not None or _ended(row.control):
            return [Produced(uid=row.uid, tokens=row.opening, finish_reason=reason)]
        row.delta = rope_delta(prompt.inputs)
        token_ids = [*prompt.token_ids, *row.opening]
        state, start = self._language.begin(), 0
        if self._prefixes is not None:
            state, start = self._prefixes.begin(self._language, prompt.token_ids, prompt.inputs)
        traced = self._sampler.trace and bool(row.opening)
        logits = self._language.prefill(state, token_ids, prompt.inputs, start, every=traced)
        if traced:
            self._sampler.keep_forced(row.control, logits[-1 - len(row.opening) : -1], row.opening)
            logits = logits[-1:]
        row.length = len(token_ids)
        row.slot = min(set(range(len(self._rows) + 1)) - {each.slot for each in self._rows.values()})
        self._rows[row.uid] = row
        self._language.join(row.slot, state)
        self._choose([row], logits)
        return []

    def _launch(self) -> None:
        """Begin a decode step of all rows, and choose the next token of those with no other ahead."""
        rows = list(self._rows.values())
        if not rows:
            return
        columns = self._columns(rows)
        taken = [row.ahead[:columns] for row in rows]
        tokens = mx.array([token for each in taken for token in each])
        places = [(row.slot, row.length, len(each), row.delta) for row, each in zip(rows, taken, strict=True)]
        for row, each in zip(rows, taken, strict=True):
            row.length += len(each)
            row.ahead = row.ahead[len(each) :]
        free = [i for i, row in enumerate(rows) if not row.ahead]
        logits = self._language.decode(tokens, places, every=self._sampler.trace)
        if self._sampler.trace:
            logits = self._traced(rows, taken, logits)
        if len(free) == len(rows):
            self._choose(rows, logits)
        elif free:
            self._choose([rows[i] for i in free], logits[mx.array(free)])
        else:
            mx.async_eval(logits, self._language.states())  # type: ignore[no-untyped-call]

    def _columns(self, rows: Sequence[_Row]) -> int:
        """Return how many tokens a row may append in this step: as many as enough rows have."""
        if not self._language.plain:
            return 1
        columns = 1
        while sum(len(row.ahead) > columns for row in rows) > _FULL_COLUMN * len(rows):
            columns += 1
        return columns

    def _choose(self, rows: list[_Row], logits: mx.array) -> None:
        controls = [row.control for row in rows]
        tokens = self._sampler.choose(penalised(logits, controls), controls)
        mx.async_eval(tokens, self._language.states())  # type: ignore[no-untyped-call]
        self._chosen.append((rows, tokens))

    def _collect(self) -> list[tuple[_Row, int]]:
        chosen, self._chosen = self._chosen, []
        pairs = []
        for rows, array in chosen:
            tokens: Sequence[int] = array.tolist()  # type: ignore[assignment]
            pairs += [(row, token) for row, token in zip(rows, tokens, strict=True) if not row.gone]
        return pairs

    def _advance(self, row: _Row, token: int) -> Produced:
        """Take the token that was chosen for `row`, and those that must follow it."""
        tokens, known = row.opening, len(row.opening)
        row.opening = []
        reason = self._take(row, token, tokens)
        if reason is None and self._forced_tokens:
            reason = self._force(row, tokens)
        row.ahead = tokens[known:]
        if reason is not None or _ended(row.control):
            self._release(row)
        return Produced(uid=row.uid, tokens=tokens, finish_reason=reason)

    def _take(self, row: _Row, token: int, tokens: list[int]) -> Literal["stop", "length"] | None:
        """Append `token` to `tokens` and return why the row ends with it, if it does."""
        if token in self._eos:
            return "stop"
        tokens.append(token)
        row.produced += 1
        row.control.consume(token)
        return "length" if row.produced >= row.prompt.max_tokens else None

    def _force(self, row: _Row, tokens: list[int]) -> Literal["stop", "length"] | None:
        """Append to `tokens` those that must come next, and return why the row ends with them, if it does."""
        reason = None
        while reason is None and not _ended(row.control) and (token := row.control.forced()) is not None:
            row.control.position += 1
            reason = self._take(row, token, tokens)
        return reason

    def _release(self, row: _Row) -> None:
        row.gone = True
        del self._rows[row.uid]
        self._language.leave(row.slot)

    def _traced(self, rows: Sequence[_Row], taken: Sequence[Sequence[int]], logits: mx.array) -> mx.array:
        """Keep the log-probabilities of forced tokens and return the logits behind each row's last token."""
        last, end = [], 0
        for row, tokens in zip(rows, taken, strict=True):
            begin, end = end, end + len(tokens)
            known = [*tokens[1:], *row.ahead[:1]]
            if known:
                self._sampler.keep_forced(row.control, logits[begin : begin + len(known)], known)
            last.append(end - 1)
        return logits[mx.array(last)]


def _ended(control: RowControl) -> bool:
    return control.complete or control.error is not None
