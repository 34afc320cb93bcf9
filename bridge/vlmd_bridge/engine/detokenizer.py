"""From token ids to text, one token at a time, for every tokenizer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from vlmd_bridge.engine.output import THINK_CLOSE, THINK_OPEN

# Of two, three and four bytes, with blanks of both kinds: what a tokenizer's own decoding is compared on.
_PROBE = "a ,b  é 漢字 🙂\n the cat's\tend"

# Beyond this many tokens that end in no whole character, the bytes are simply wrong.
_MAX_HELD_TOKENS = 8


class Detokenizer:
    """What the tokens of one tokenizer stand for.

    Byte-level and sentencepiece-like tokenizers give the bytes of each token; any other is asked to decode a window of
    tokens again and again (`by_bytes` is False). Control tokens stand for nothing, but for the thinking tags, which
    some models have as control tokens. Ids beyond the vocabulary stand for nothing too: a model's output is often
    padded past it (151,669 to 151,936 for Qwen3), and an untrained or damaged one may choose those.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of transformers', or a wrapper that passes its attributes on."""
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        self._silent = frozenset(
            token
            for token, content in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
            if content not in (THINK_OPEN, THINK_CLOSE)
        ) | frozenset(
            token
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.special and added.content not in (THINK_OPEN, THINK_CLOSE)
        )
        self._added: dict[int, bytes] = {
            token: added.content.encode() for token, added in tokenizer.added_tokens_decoder.items()
        }
        self._bytes: dict[int, bytes] = {}
        probe = [token for token in tokenizer.encode(_PROBE, add_special_tokens=False) if token not in self._silent]
        expected = self.decode_window(probe)
        self._byte_level = any("Ġ" in str(piece) for piece in tokenizer.convert_ids_to_tokens(probe))
        plain = self._join(probe)
        # Sentencepiece begins every text with a blank, which its decoding takes away again.
        self.trims_blank = plain != expected and plain.startswith(" ") and plain[1:] == expected
        self.by_bytes = plain == expected or self.trims_blank

    def is_text(self, token: int) -> bool:
        """Whether `token` stands for text at all."""
        return 0 <= token < self._size and token not in self._silent

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that `token` stands for."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token) if self.is_text(token) else b""
        return known

    def decode_window(self, tokens: Sequence[int]) -> str:
        """Return what the tokenizer itself makes of `tokens`, all of them text."""
        decoded = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _join(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        piece = str(self._tokenizer.convert_ids_to_tokens(token) or "")
        if self._byte_level:
            table = _byte_of_char()
            if all(char in table for char in piece):
                return bytes(table[char] for char in piece)
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


class TextStream:
    """The text of one answer: whole characters only, what is incomplete at the end waits for the next token."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._trim = detokenizer.trims_blank
        # Only for tokenizers that cannot tell bytes: tokens whose text is out, as context, and those behind them.
        self._context: list[int] = []
        self._fresh: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that `token` completes."""
        if not self._detokenizer.is_text(token):
            return ""
        if self._detokenizer.by_bytes:
            return self._trimmed(self._decoder.decode(self._detokenizer.token_bytes(token)))
        self._fresh.append(token)
        return self._window(final=len(self._fresh) > _MAX_HELD_TOKENS)

    def finish(self) -> str:
        """Return what was held back, U+FFFD in place of bytes that are no character."""
        if self._detokenizer.by_bytes:
            return self._trimmed(self._decoder.decode(b"", final=True))
        return self._window(final=True) if self._fresh else ""

    def _trimmed(self, text: str) -> str:
        if self._trim and text:
            self._trim = False
            return text.removeprefix(" ")
        return text

    def _window(self, *, final: bool) -> str:
        # Decoded behind their predecessors: a blank may depend on what comes before.
        before = self._detokenizer.decode_window(self._context) if self._context else ""
        text = self._detokenizer.decode_window(self._context + self._fresh)
        if not final and text.endswith("\ufffd"):
            return ""
        self._context, self._fresh = self._fresh, []
        return text[len(before) :]


def decode(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    """Return the text of `tokens`."""
    stream = TextStream(detokenizer)
    return "".join(map(stream.add, tokens)) + stream.finish()


_byte_of: dict[str, int] = {}


def _byte_of_char() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE: GPT-2's `bytes_to_unicode`, the other way round."""
    if not _byte_of:
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = (byte for byte in range(256) if byte not in shown)
        _byte_of.update({chr(byte): byte for byte in shown})
        _byte_of.update({chr(256 + i): byte for i, byte in enumerate(hidden)})
    return _byte_of
