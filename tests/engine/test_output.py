"""Thinking, stop strings and deltas: the same answer however its text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmd_bridge.engine.output import Answer


def run(pieces: list[str], *, stream: bool = False, **options: object) -> tuple[str, str | None, bool]:
    """Return text, reasoning and whether a stop string ended it; with `stream`, as the deltas tell it."""
    answer = Answer(**options)  # type: ignore[arg-type]
    taken = [("", "")]
    for piece in pieces:
        answer.feed(piece)
        if stream:
            taken.append(answer.take())
    answer.finish()
    if stream:
        taken.append(answer.take())
        text, reasoning = ("".join(column) for column in zip(*taken, strict=True))
        assert (text, reasoning or None) == (answer.text, answer.reasoning)
    return answer.text, answer.reasoning, answer.stopped


@pytest.mark.parametrize(
    ("raw", "text", "reasoning"),
    [
        ("plain", "plain", None),
        ("  plain  ", "  plain  ", None),
        ("<think>\nhm \n</think>\n\nYes.", "Yes.", "hm"),
        ("\n<think>hm</think>Yes.\n", "Yes.\n", "hm"),
        ("<think></think>\n\nYes.", "Yes.", None),
        ("<think>never closed", "", "never closed"),
        ("<think>a</think> <think>b</think> c", "c", "a\nb"),
        ("</think>Yes.", "Yes.", None),
        ("<think>a</think></think>Yes.", "Yes.", "a"),
        ("<thin", "<thin", None),
        ("<thinking>", "<thinking>", None),
        ("a < b </thin", "a < b </thin", None),
        ("Use <think> and </think> tags.", "Use <think> and </think> tags.", None),
        ("<think>a</think>Use </think>.", "Use </think>.", "a"),
        ("<think> a </thin b</think>c", "c", "a </thin b"),
    ],
)
def test_thinking(raw: str, text: str, reasoning: str | None) -> None:
    for pieces in ([raw], list(raw)):
        for stream in (False, True):
            assert run(pieces, stream=stream) == (text, reasoning, False)


def test_an_end_tag_alone() -> None:
    raw = "I see a cat.\n</think>\n\nA cat."
    assert run([raw]) == run(list(raw)) == ("A cat.", "I see a cat.", False)
    # Asked to think: nothing is handed out before it is known.
    assert run(list(raw), stream=True, hold=True) == ("A cat.", "I see a cat.", False)
    assert run(list("No tag at all."), stream=True, hold=True) == ("No tag at all.", None, False)
    # Not asked to: what was handed out as text stays text.
    assert run(list(raw), stream=True) == ("I see a cat.\n\n\nA cat.", None, False)


def test_opened_by_the_prompt() -> None:
    for raw in ("hm</think>Yes.", "\nhm\n</think>\nYes.", "<think>hm</think>Yes.", "\n<think>\nhm</think>Yes."):
        for pieces in ([raw], list(raw)):
            assert run(pieces, stream=True, opened=True) == ("Yes.", "hm", False)
    assert run(["cut sho"], opened=True) == ("", "cut sho", False)
    assert run(["<thi"], opened=True) == ("", "<thi", False)


@pytest.mark.parametrize(
    ("raw", "stop", "text"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four",), "one two three"),
        ("aab", ("ab",), "a"),
        ("abc", ("abc", "b"), "a"),  # the one that is complete first
        ("xx\n\nyy", ("\n\n",), "xx"),
        ("\n\nyy", ("\n\n",), ""),
        ("a日本語b", ("日本",), "a"),
        ("one tw", ("two",), "one tw"),
        ("<think>two</think>one two", ("two",), "one "),  # not in the thinking
    ],
)
def test_stop_strings(raw: str, stop: tuple[str, ...], text: str) -> None:
    for pieces in ([raw], list(raw)):
        for stream in (False, True):
            got = run(pieces, stream=stream, stop=stop)
            assert (got[0], got[2]) == (text, text != raw)


_PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "th", "ink>", "</", "END", "E", "N"]))


@given(pieces=_PIECES, opened=st.booleans(), hold=st.booleans())
def test_pieces_do_not_matter(pieces: list[str], opened: bool, hold: bool) -> None:
    whole = run(["".join(pieces)], stop=("END",), opened=opened)
    assert run(list("".join(pieces)), stop=("END",), opened=opened) == whole
    run(pieces, stream=True, stop=("END",), opened=opened, hold=hold)  # deltas add up


def test_nothing_is_held_back_for_long() -> None:
    answer = Answer(stop=("STOP",))
    sent = []
    for char in "Hello, S world":
        answer.feed(char)
        sent.append(answer.take()[0])
    assert sent == ["H", "e", "l", "l", "o", ",", " ", "", "S ", "w", "o", "r", "l", "d"]
