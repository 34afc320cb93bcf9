"""Token by token, the text is what the tokenizer makes of all tokens at once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.engine.conftest import TinyPath
from vlmd_bridge.engine.detokenizer import Detokenizer, TextStream, decode

pytestmark = pytest.mark.model

TEXTS = ("Hello, the cat.", " leading", "日本語 🙂👩‍💻 ñ", "a\n\n  b\tc", "</think> <think>", "")


def pieces(detokenizer: Detokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(detokenizer)
    return [*(stream.add(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_whole_texts(name: str, tiny_path: TinyPath) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_path(name)))
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.by_bytes and detokenizer.trims_blank == (name == "llama")
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        got = pieces(detokenizer, tokens)
        assert "".join(got) == tokenizer.decode(tokens, skip_special_tokens=True)
        assert all("\ufffd" not in piece for piece in got)
    assert decode(detokenizer, [tokenizer.eos_token_id, len(tokenizer) + 3, -1]) == ""


def test_any_tokens_of_a_byte_level_vocabulary(tiny_path: TinyPath) -> None:
    """Wrong bytes become the same U+FFFD as in the tokenizer's own decoding."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_path("qwen3")))
    detokenizer = Detokenizer(tokenizer)
    for seed in range(200):
        tokens = random.Random(seed).choices(range(len(tokenizer)), k=12)
        expected = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces(detokenizer, tokens)) == expected


def test_smooth(tiny_path: TinyPath) -> None:
    """A character is out with its last byte, not with the next blank."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_path("qwen3")))
    tokens = tokenizer.encode("xé日z", add_special_tokens=False)
    assert pieces(Detokenizer(tokenizer), tokens) == ["x", "", "é", "", "", "日", "z", ""]


def test_a_tokenizer_that_tells_no_bytes() -> None:
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "hel", "##lo", "wor", "##ld", "a", "b", "c", "d", "##e", "the", "end", ",", "cat", "é", "🙂"]
    inner = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    detokenizer = Detokenizer(tokenizer)
    detokenizer.by_bytes = False  # what a probe of this vocabulary says is mere luck
    assert pieces(detokenizer, [1, 2, 3, 4, 15, 11]) == ["hel", "lo", " wor", "ld", " 🙂", " end", ""]
