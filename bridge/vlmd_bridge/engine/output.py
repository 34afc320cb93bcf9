"""From token ids to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of `tokens` without control tokens.

    Ids beyond the tokenizer are left out: a model's output is often padded past its vocabulary (151,669 to 151,936
    for Qwen3), and an untrained or damaged one may choose those.
    """
    known = len(tokenizer)
    return str(
        tokenizer.decode(
            [token for token in tokens if token < known], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )
