"""What decides one row's tokens besides the model: its grammar, its budget, its sampling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.detokenizer import Detokenizer, TextStream
from vlmd_bridge.engine.grammar.budget import Matcher
from vlmd_bridge.engine.output import Answer
from vlmd_bridge.workers.messages import Sampling

# What llguidance says of a token that does not fit; of its limits it says something else.
_REFUSED = "doesn't satisfy the grammar"


class Budget(Protocol):
    """Closes a constrained answer in time."""

    def advance(self, token: int) -> None:
        """Take the token that was produced."""
        ...

    def forced(self, matcher: Matcher) -> int | None:
        """Return the token that must come next, or None while there is time."""
        ...

    def narrow(self, words: NDArray[np.int32]) -> None:
        """Take tokens that there is no time for out of `words`, the bits of those that may come next."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """A row's own matcher, what makes its budget once it is known how many tokens are left, and what to do in error.

    Matchers of one grammar share its lexer: one that ran out of limits leaves nothing to the others, so that the
    grammar is to be compiled anew (`forget`).
    """

    matcher: Any
    tokenizer: Any
    budget: Callable[[int], Budget | None]
    forget: Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """How a constrained row may think first: behind a tag in its prompt (`opened`), or by writing `open_token`.

    A tag of several tokens is not offered: a row that began one could go on otherwise.
    """

    detokenizer: Detokenizer
    opened: bool
    open_token: int | None


class RowControl:
    """Follows one row, token by token."""

    # mlx-vlm's own grammar processor sets this, which holds back every prefill while a constrained row decodes: the
    # mean width of a batch falls to 1.2 rows.
    requires_immediate_decode_yield = False

    def __init__(
        self,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        grammar: Grammar | None = None,
        thinking: Thinking | None = None,
        prompt_ids: Iterable[int] = (),
    ) -> None:
        """Begin a row of at most `max_tokens`; `prompt_ids` are what a repetition penalty counts as said already."""
        sampling = sampling or Sampling()
        self.temperature = sampling.temperature
        self.top_p = sampling.top_p
        self.top_k = sampling.top_k
        self._penalty = sampling.repetition_penalty
        self._seen = set(prompt_ids) if self._penalty != 1.0 else set()
        self._seed = os.urandom(16).hex() if sampling.seed is None else str(sampling.seed)
        # Tokens sampled: what noise is keyed by, so that it depends neither on neighbours nor on their number.
        self.position = 0
        self._max_tokens = max_tokens
        self._grammar = grammar
        self._matcher: Any = None
        self._budget: Budget | None = None
        self._forced: list[int] = []
        # What `_next_forced` found for the coming token; False when it was not asked.
        self._found: int | Literal[False] | None = False
        self._thinking = thinking if grammar is not None else None
        self._watch: tuple[TextStream, Answer] | None = None
        # Set when the grammar takes nothing more: the answer is whole, and the row need not decode its EOS.
        self.complete = False
        # Set when the row has failed: its grammar gave up, or it ended without a whole answer.
        self.error: SequenceError | None = None
        # With the sampler's `trace`: log-probability of each token, and its lead over the next allowed one.
        self.trace: list[tuple[mx.array, mx.array]] = []
        # Set by a generator whose rows enlist themselves for the sampler (mlx-vlm's logits processors).
        self.enlist: Callable[[RowControl], None] = lambda row: None
        if self._thinking is not None and self._thinking.opened:
            self._think()
        elif grammar is not None:
            self._begin(max_tokens)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Enlist for the row's first token; `tokens` are those of the prompt."""
        self.enlist(self)
        return self.penalised(logits)

    def process_last_token(self, token: int, logits: mx.array) -> mx.array:
        """Take the row's last `token` and enlist for the next one."""
        self.consume(token)
        self.enlist(self)
        return self.penalised(logits)

    @property
    def follows(self) -> bool:
        """Whether each token must be known before the next one is chosen."""
        return self._grammar is not None or self._penalty != 1.0

    @property
    def penalises(self) -> bool:
        """Whether `penalised` changes anything."""
        return self._penalty != 1.0

    @property
    def constrained(self) -> bool:
        """Whether a mask is needed for the next token."""
        return self._matcher is not None and not self.complete and self.error is None

    def consume(self, token: int) -> None:
        """Take the row's last `token`."""
        if self._penalty != 1.0:
            self._seen.add(token)
        if self._grammar is None or self.complete or self.error is not None:
            return
        if self._watch is not None:
            self._consume_thinking(token, *self._watch)
        elif self._opens_thinking(token):
            self._think()
        else:
            self._consume(token)

    def end(self) -> None:
        """Take the end of the row by an end-of-sequence token: without a whole answer that is an error."""
        if self._grammar is None or self.complete or self.error is not None:
            return
        if self._matcher is None:
            self.error = SequenceError("worker_error", "the model ended inside its thinking, before its answer began")
        elif self._matcher.is_error():
            self._give_up()
        elif not self._matcher.is_accepting():
            self.error = SequenceError("worker_error", "the model ended before its answer was whole")

    def penalised(self, logits: mx.array) -> mx.array:
        """Return `logits` ([1, vocabulary]) with those of tokens said before moved away from the top (CTRL, 4.1)."""
        if self._penalty == 1.0:
            return logits
        seen = np.zeros(logits.shape[-1], dtype=np.bool_)
        seen[[token for token in self._seen if token < len(seen)]] = True
        lowered = mx.where(logits > 0, logits / self._penalty, logits * self._penalty)
        return mx.where(mx.array(seen), lowered, logits)

    @property
    def matcher(self) -> Any:
        """What computes the mask of the next token, where the row is constrained and nothing is forced."""
        return self._matcher

    def forced(self) -> int | None:
        """Return the next token if there is no choice about it."""
        return None if not self.constrained or self._may_think() else self._next_forced()

    def fill_mask(self, words: NDArray[np.int32]) -> None:
        """Set in `words` the bits of the tokens that may come next."""
        if self.needs_mask():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self.finish_mask(words)

    def needs_mask(self) -> bool:
        """Return whether `matcher` is to fill the mask before `finish_mask`."""
        return self.constrained and self._next_forced() is None

    def finish_mask(self, words: NDArray[np.int32]) -> None:
        """Fit `words`, which the matcher has filled if it was needed, to the budget and to what is forced."""
        if not self.constrained:
            return
        forced = self._next_forced()
        if forced is not None:
            words[:] = 0
            _allow(words, forced)
        elif self._budget is not None:
            self._budget.narrow(words)
        if self._may_think():
            assert self._thinking is not None and self._thinking.open_token is not None
            _allow(words, self._thinking.open_token)

    def noise_key(self) -> list[int]:
        """Return the key of this row's noise at this position: two words of a BLAKE2b digest."""
        digest = hashlib.blake2b(f"{self._seed}:{self.position}".encode(), digest_size=8).digest()
        return [int.from_bytes(digest[:4]), int.from_bytes(digest[4:])]

    def _begin(self, tokens_left: int) -> None:
        assert self._grammar is not None
        self._matcher = self._grammar.matcher
        self._found = False
        self._budget = self._grammar.budget(tokens_left)

    def _opens_thinking(self, token: int) -> bool:
        return (
            self.position == 1
            and self._thinking is not None
            and token == self._thinking.open_token
            and not self._matcher.validate_tokens([token])
        )

    def _think(self) -> None:
        assert self._thinking is not None
        self._matcher = self._budget = None
        self._watch = (TextStream(self._thinking.detokenizer), Answer(opened=True))

    def _consume_thinking(self, token: int, text: TextStream, answer: Answer) -> None:
        answer.feed(text.add(token))
        if answer.thinking:
            return
        self._watch = None
        self._begin(self._max_tokens - self.position)
        assert self._grammar is not None
        # Text behind the tag in the very token that ended it.
        for rest in self._grammar.tokenizer.tokenize_bytes(answer.text.encode()):
            self._consume(rest)

    def _may_think(self) -> bool:
        return self.position == 0 and self._thinking is not None and self._thinking.open_token is not None

    def _consume(self, token: int) -> None:
        self._found = False
        if self._forced and self._forced.pop(0) != token:
            self._forced.clear()
        if not self._matcher.consume_token(token) and _REFUSED in self._matcher.get_error():
            # A mask makes that impossible.
            self.error = SequenceError("worker_error", f"the grammar lost the answer: {_first_line(self._matcher)}")
        elif self._matcher.is_error():
            # Often since its last mask, which then allows nothing but the end.
            self._give_up()
        elif self._matcher.is_stopped():
            self.complete = True
        elif self._budget is not None:
            self._budget.advance(token)

    def _give_up(self) -> None:
        """Fail the row: its grammar ran out of llguidance's limits."""
        assert self._grammar is not None
        self._grammar.forget()
        self.error = SequenceError(
            "schema_invalid",
            f"the schema or pattern grew too complex while the answer was written ({_first_line(self._matcher)}): "
            "nest fewer repeats in it, or lower their bounds",
        )

    def _next_forced(self) -> int | None:
        if self._found is False:
            self._found = self._find_forced()
        return self._found

    def _find_forced(self) -> int | None:
        if self._budget is not None and (token := self._budget.forced(self._matcher)) is not None:
            return token
        if not self._forced:
            # Text that the grammar leaves no choice about, in its usual tokens: a model that would spell it out byte
            # by byte does not get to.
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced[0] if self._forced else None


def _first_line(matcher: Any) -> str:
    """Return the first line of the matcher's error: the others repeat the answer."""
    return str(matcher.get_error()).partition("\n")[0][:200]


def _allow(words: NDArray[np.int32], token: int) -> None:
    words.view(np.uint32)[token // 32] |= np.uint32(1 << (token % 32))
