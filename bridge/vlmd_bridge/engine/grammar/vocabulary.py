"""What single tokens of a vocabulary look like, for those who look for a way to close an answer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Vocabulary:
    """The tokens of `tokenizer`, which is llguidance's. Looked through once, when first asked: 0.2 s for 150,000."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def of_byte(self) -> dict[int, int]:
        """The token of each ASCII character that has one."""
        found: dict[int, int] = {}
        for token, text in enumerate(self._texts):
            if len(text) == 1 and text[0] < 0x80:
                found.setdefault(text[0], token)
        return found

    @cached_property
    def quoting(self) -> NDArray[np.int32]:
        """As bits, least significant first: the tokens with a quotation mark that is not their last byte."""
        bits = np.zeros(-(-len(self._texts) // 32) * 32, dtype=np.uint8)
        bits[: len(self._texts)] = [b'"' in text[:-1] for text in self._texts]
        return np.packbits(bits, bitorder="little").view(np.int32)

    @cached_property
    def _texts(self) -> list[bytes]:
        return [bytes(self.tokenizer.decode_bytes([token])) for token in range(int(self.tokenizer.vocab_size))]
