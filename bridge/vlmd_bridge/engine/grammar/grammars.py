"""Grammars for constrained answers: compiled once for each constraint, one matcher for each row."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import llguidance
import llguidance.hf
import msgspec

from vlmd_bridge.engine.backend import SequenceError
from vlmd_bridge.engine.control import Budget
from vlmd_bridge.engine.grammar.budget import RecordBudget
from vlmd_bridge.engine.grammar.json_bounds import bound_schema
from vlmd_bridge.engine.grammar.json_budget import JsonBudget
from vlmd_bridge.engine.grammar.json_schema import MAX_REPEATS, parse_schema
from vlmd_bridge.engine.grammar.json_sizes import SchemaSizes
from vlmd_bridge.engine.grammar.vocabulary import Vocabulary
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


# Digits in braces say how often something repeats: {3}, {3,}, {3,5}.
_REPEATS = re.compile(r"\{(\d+)(?:,(\d*))?\}")
MAX_PATTERN_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compiled:
    """`fresh` is a matcher that took no token yet, to be copied: a tenth of what building one costs."""

    fresh: llguidance.LLMatcher
    sizes: SchemaSizes | None


class Grammars:
    """Compiles constraints for one tokenizer and keeps the last ones."""

    def __init__(self, tokenizer: Any, eos_token_ids: list[int]) -> None:
        """Build llguidance's view of `tokenizer`: about 1.7 s for a vocabulary of 150,000."""
        self.tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=eos_token_ids)
        self._vocabulary = Vocabulary(self.tokenizer)
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()

    @property
    def vocab_size(self) -> int:
        """Token ids that a grammar can tell apart; a model's output may be padded beyond."""
        return int(self.tokenizer.vocab_size)

    def matcher(self, constraint: Constraint, max_tokens: int) -> llguidance.LLMatcher:
        """Return a fresh matcher of `constraint`; the parts of a schema share `max_tokens`.

        Raises:
            SequenceError: the schema or pattern is wrong, or beyond what a grammar can express.
        """
        return self._get(constraint, max_tokens).fresh.deep_copy()

    def budget(self, constraint: Constraint, max_tokens: int, tokens_left: int) -> Budget | None:
        """Return what closes an answer under `constraint`, compiled for `max_tokens`, within `tokens_left`."""
        if isinstance(constraint, RecordConstraint):
            return RecordBudget(self.tokenizer, constraint, tokens_left)
        sizes = self._get(constraint, max_tokens).sizes
        return None if sizes is None else JsonBudget(self._vocabulary, sizes, tokens_left)

    def forget(self, constraint: Constraint, max_tokens: int) -> None:
        """Have `constraint` compiled anew for the next row."""
        self._compiled.pop(_key(constraint, max_tokens), None)

    def _get(self, constraint: Constraint, max_tokens: int) -> _Compiled:
        key = _key(constraint, max_tokens)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(constraint, max_tokens)
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return compiled

    def _compile(self, constraint: Constraint, max_tokens: int) -> _Compiled:
        sizes = None
        if isinstance(constraint, RecordConstraint):
            grammar = llguidance.grammar_from("regex", record_pattern(constraint))
        elif isinstance(constraint, SchemaConstraint):
            schema = parse_schema(constraint.schema)
            self._matcher(_json_grammar(schema))  # for what is wrong with it, before it is looked into
            try:
                sizes = SchemaSizes(schema, lambda text: len(self.tokenizer.tokenize_str(text)))
                grammar = _json_grammar(bound_schema(schema, max_tokens))
            except (TypeError, ValueError, AttributeError, RecursionError) as error:
                # llguidance does not look at what nothing refers to.
                raise SequenceError("schema_invalid", f"the schema cannot be read: {error}") from None
        else:
            _check_pattern(constraint.pattern)
            grammar = llguidance.grammar_from("regex", constraint.pattern)
        return _Compiled(fresh=self._matcher(grammar), sizes=sizes)

    def _matcher(self, grammar: str) -> llguidance.LLMatcher:
        # llguidance states what is wrong as ValueError, or only when it validates, or only in the matcher.
        try:
            wrong = llguidance.LLMatcher.validate_grammar(grammar, self.tokenizer)
        except ValueError as error:
            wrong = str(error)
        if not wrong:
            matcher = llguidance.LLMatcher(self.tokenizer, grammar)
            if not matcher.is_error():
                return matcher
            wrong = matcher.get_error()
        raise SequenceError("schema_invalid", _first_line(wrong))


def _key(constraint: Constraint, max_tokens: int) -> bytes:
    budget = max_tokens if isinstance(constraint, SchemaConstraint) else 0
    return hashlib.blake2b(b"%d " % budget + msgspec.msgpack.encode(constraint), digest_size=16).digest()


def _json_grammar(schema: Any) -> str:
    # Compact JSON: every optional blank would be a token that a model may repeat.
    compiler = llguidance.JsonCompiler(separators=(",", ":"), whitespace_pattern="")
    try:
        return str(compiler.compile(msgspec.json.encode(schema).decode()))
    except (ValueError, RecursionError) as error:
        raise SequenceError("schema_invalid", _first_line(str(error))) from None


def _check_pattern(pattern: str) -> None:
    size = len(pattern.encode())
    if size > MAX_PATTERN_BYTES:
        raise SequenceError("schema_invalid", f"the pattern has {size} bytes; at most {MAX_PATTERN_BYTES} are taken")
    for match in _REPEATS.finditer(pattern):
        times = max(int(number or 0) for number in match.groups("0"))
        if times > MAX_REPEATS:
            raise SequenceError(
                "schema_invalid", f"the pattern repeats something {times} times; at most {MAX_REPEATS} are enforced"
            )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:500]
