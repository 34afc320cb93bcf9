"""Which prefixes are found for prompts in any order, what computing them costs, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vlmd_bridge.engine.rows.prefix import Prefix, PrefixIndex


class _Numbers(PrefixIndex[int]):
    """A state is its number of tokens, and so many bytes."""

    def __init__(self) -> None:
        super().__init__(frozenset({-1}))
        self.computed_tokens = 0

    def state_bytes(self, state: int) -> int:
        return state

    def compute(self, length: int, known: Prefix[int] | None) -> int:
        self.computed_tokens += length - (0 if known is None else known.state)
        return length

    def ask(self, tokens: Sequence[int]) -> int:
        """Return the tokens of the prompt that need not be computed for it alone."""
        found = self.find(tokens, self.compute)
        if found is None:
            return 0
        assert tuple(tokens[: found.state]) == found.token_ids
        return found.state


def _prompts(jobs: str) -> list[list[int]]:
    """Return a prompt for each letter: 200 tokens of its job, a picture, a label. A and B begin with 40 alike."""
    alike = {"A": 40, "B": 40, "C": 0, "D": 0}
    return [
        [*range(alike[job]), *(1000 * (ord(job) - 64) + i for i in range(200 - alike[job])), -1, 90_000 + nth, 7]
        for nth, job in enumerate(jobs)
    ]


@pytest.mark.parametrize(
    ("jobs", "begins"),
    [
        ("AAAA", [0, 200, 200, 200]),
        ("ACACAC", [0, 0, 200, 200, 200, 200]),
        ("ACDACD", [0, 0, 0, 200, 200, 200]),
        ("ABABAB", [0, 40, 200, 200, 200, 200]),
        ("AB" + 9 * "B" + 9 * "A", [0, 40, *[200] * 9, 40, *[200] * 8]),
    ],
)
def test_jobs_that_take_turns_share_what_they_have_in_common(jobs: str, begins: list[int]) -> None:
    index = _Numbers()
    assert [index.ask(prompt) for prompt in _prompts(jobs)] == begins
    assert index.computed_tokens <= 200 * len(set(jobs))


def test_the_bytes_of_all_prefixes_are_bounded() -> None:
    index = _Numbers()
    index.limit_bytes = 450
    for job in "ACD":
        for prompt in _prompts(2 * job):
            index.ask(prompt)
        assert index.held_bytes <= 450
    assert [index.ask(prompt) for prompt in _prompts("DC")] == [200, 200]
    long = list(range(5000, 6000))
    assert [index.ask(long), index.ask(long)] == [0, 998]
    assert len(index) == 1 and index.held_bytes == 998
