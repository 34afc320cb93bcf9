"""The record's text form: what parses, and that no frame ever gets another's text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmd_bridge.record import (
    Record,
    format_interleaved,
    format_record,
    format_timestamp,
    interleaved_label,
    parse_interleaved,
    parse_record,
    single_label,
)

_field = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)
_records = st.builds(
    Record,
    description=_field,
    activity=_field,
    apps=st.lists(_field, max_size=3).map(tuple),
    topics=st.lists(_field, max_size=3).map(tuple),
)


@given(_records)
def test_a_record_is_read_back(record: Record) -> None:
    assert parse_record(format_record(record)) == record


@given(st.lists(_records, min_size=1, max_size=8))
def test_interleaved_records_are_read_back(records: list[Record]) -> None:
    assert [parsed for parsed, _ in parse_interleaved(format_interleaved(records), len(records))] == records


@given(st.lists(_records, min_size=3, max_size=6), st.data())
def test_a_malformed_line_costs_its_own_frame_only(records: list[Record], data: st.DataObject) -> None:
    lines = format_interleaved(records).split("\n")
    broken = data.draw(st.integers(0, len(lines) - 1))
    lines[broken] = data.draw(
        st.sampled_from(["", "garbage", f"Frame {broken + 1}: description: only", lines[broken].replace("|", "/")])
    )
    parsed = [record for record, _ in parse_interleaved("\n".join(lines), len(records))]
    assert parsed[broken] is None
    assert parsed[:broken] + parsed[broken + 1 :] == records[:broken] + records[broken + 1 :]


def test_a_frame_answered_twice_is_ambiguous() -> None:
    record = Record(description="d", activity="a", apps=(), topics=())
    line = f"Frame 1: {format_record(record)}"
    ((parsed, raw),) = parse_interleaved(f"{line}\n{line}", 1)
    assert parsed is None
    assert raw.count("description") == 2


@pytest.mark.parametrize(
    "text",
    ["", "description: a | activity: b", "description: a | activity: b | apps: x | topics: [y]", "{}", "a\nb"],
)
def test_what_is_no_record_is_none(text: str) -> None:
    assert parse_record(text) is None


def test_quotes_and_blanks_around_items_are_taken_off() -> None:
    record = parse_record(" description: a  b | activity: c|apps: ['X', \"Y\" ,] | topics: [ ]\n")
    assert record == Record(description="a  b", activity="c", apps=("X", "Y"), topics=())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.5, "42.5"), (10, "10"), (0.0, "0"), (-0.0001, "0"), (100000.5, "100000.5"), (1 / 3, "0.333")],
)
def test_timestamps_are_short(seconds: float, text: str) -> None:
    assert format_timestamp(seconds) == text


def test_labels() -> None:
    assert single_label(42.5) == "Frame (timestamp: 42.5s):"
    assert single_label(None) == "Frame:"
    assert interleaved_label(2, 1.5) == "Frame 2 (timestamp: 1.5s):"
    assert interleaved_label(2, None) == "Frame 2:"
