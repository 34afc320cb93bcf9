"""Grammars for constrained answers: compiled once for each constraint, one matcher for each row."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import llguidance
import llguidance.hf
import msgspec

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.budget import RecordBudget
from vlmd_bridge.engine.json_bounds import bound_schema
from vlmd_bridge.workers.messages import Constraint, RecordConstraint, SchemaConstraint

# A compiled grammar is some kilobytes; distinct schemas in one worker's life are few.
_CACHED_GRAMMARS = 64

# A field of the record's text form: no `|`, no control characters, no blank at its ends (`record.parse_record` would
# strip it). List items also keep commas and brackets out. A list may end in a comma and blanks, which the parser drops,
# so that one that runs out of budget behind them can be closed.
_EDGE = r"[^|\s\x00-\x20\x7f]"
_TEXT = rf"{_EDGE}([^|\x00-\x1f\x7f\u0085\u2028\u2029]*{_EDGE})?"
_ITEM_EDGE = r"[^|,\[\]\s\x00-\x20\x7f]"
_ITEM = rf"{_ITEM_EDGE}([^|,\[\]\x00-\x1f\x7f\u0085\u2028\u2029]*{_ITEM_EDGE})?"
MAX_LIST_ITEMS = 8
_LIST = rf"\[({_ITEM}(, ?{_ITEM}){{0,{MAX_LIST_ITEMS - 1}}},? *)?\]"
_RECORD = rf"description: {_TEXT} \| activity: {_TEXT} \| apps: {_LIST} \| topics: {_LIST}"


def record_pattern(constraint: RecordConstraint) -> str:
    """Return the regular expression of the records that `constraint` asks for.

    One expression, not a grammar of lexemes: where a field ends is decided by what follows it (a blank belongs to the
    field or to the separator), which a lexer that cannot look back would get wrong.
    """
    if not constraint.labelled:
        return "\n".join([_RECORD] * constraint.frame_count)
    return "\n".join(f"Frame {i}: {_RECORD}" for i in range(1, constraint.frame_count + 1))


class Grammars:
    """Compiles constraints for one tokenizer and keeps the last ones."""

    def __init__(self, tokenizer: Any, eos_token_ids: list[int]) -> None:
        """Build llguidance's view of `tokenizer`: about 1.7 s for a vocabulary of 150,000."""
        self.tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=eos_token_ids)
        # Matchers that took no token yet, to be copied: a tenth of what building one costs.
        self._fresh: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()

    @property
    def vocab_size(self) -> int:
        """Token ids that a grammar can tell apart; a model's output may be padded beyond."""
        return int(self.tokenizer.vocab_size)

    def matcher(self, constraint: Constraint, max_tokens: int) -> llguidance.LLMatcher:
        """Return a fresh matcher of `constraint`; schemas are bounded so that they close within `max_tokens`.

        Raises:
            SequenceError: the schema or pattern is wrong, or beyond what a grammar can express.
        """
        budget = max_tokens if isinstance(constraint, SchemaConstraint) else 0
        key = hashlib.blake2b(b"%d " % budget + msgspec.msgpack.encode(constraint), digest_size=16).digest()
        matcher = self._fresh.get(key)
        if matcher is None:
            matcher = llguidance.LLMatcher(self.tokenizer, self._compile(constraint, max_tokens))
            if matcher.is_error():
                raise SequenceError("schema_invalid", _first_line(matcher.get_error()))
            self._fresh[key] = matcher
            if len(self._fresh) > _CACHED_GRAMMARS:
                self._fresh.popitem(last=False)
        self._fresh.move_to_end(key)
        return matcher.deep_copy()

    def budget(self, constraint: Constraint, tokens_left: int) -> RecordBudget | None:
        """Return what closes an answer under `constraint` in time; nothing does so for a regular expression."""
        if isinstance(constraint, RecordConstraint):
            return RecordBudget(self.tokenizer, constraint, tokens_left)
        return None

    def _compile(self, constraint: Constraint, max_tokens: int) -> str:
        try:
            if isinstance(constraint, RecordConstraint):
                grammar = llguidance.grammar_from("regex", record_pattern(constraint))
            elif isinstance(constraint, SchemaConstraint):
                # Compact JSON: every optional blank would be a token that a model may repeat.
                compiler = llguidance.JsonCompiler(separators=(",", ":"), whitespace_pattern="")
                grammar = compiler.compile(bound_schema(constraint.schema, max_tokens))
            else:
                grammar = llguidance.grammar_from("regex", constraint.pattern)
            # llguidance states what is wrong as ValueError, here or only when it validates.
            wrong = llguidance.LLMatcher.validate_grammar(grammar, self.tokenizer)
        except ValueError as error:
            raise SequenceError("schema_invalid", _first_line(str(error))) from None
        if wrong:
            raise SequenceError("schema_invalid", _first_line(wrong))
        return str(grammar)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:500]
