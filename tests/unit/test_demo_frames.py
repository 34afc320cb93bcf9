"""The demo's frames are the same for a seed, never alike, and their ground truth is a record the parser accepts."""

from __future__ import annotations

import random

import pytest

from vlmd_bridge.demo import KINDS, Topic, draw_frame, iter_recording, recording
from vlmd_bridge.record import UNKNOWN_ACTIVITY, format_record, parse_record

_SMALL = (320, 200)


def test_a_seed_draws_the_same_recording() -> None:
    first, second = recording(7, 12, _SMALL), recording(7, 12, _SMALL)
    assert [frame.image.tobytes() for frame in first] == [frame.image.tobytes() for frame in second]
    assert [(frame.kind, frame.record, frame.answers) for frame in first] == [
        (frame.kind, frame.record, frame.answers) for frame in second
    ]


def test_a_longer_recording_begins_like_a_shorter_one() -> None:
    assert [frame.record for frame in recording(7, 20, _SMALL)][:5] == [
        frame.record for frame in recording(7, 5, _SMALL)
    ]


def test_another_seed_draws_another_recording() -> None:
    assert recording(7, 3, _SMALL)[0].image.tobytes() != recording(8, 3, _SMALL)[0].image.tobytes()


def test_frames_of_a_recording_are_distinct() -> None:
    pictures = {frame.image.tobytes() for frame in iter_recording(1, 300, (256, 160))}
    assert len(pictures) == 300


def test_all_kinds_turn_up() -> None:
    assert {frame.kind for frame in iter_recording(2, 300, (64, 40))} == set(KINDS)
    assert len(KINDS) >= 16


@pytest.mark.parametrize("kind", KINDS)
def test_records_survive_their_text_form(kind: str) -> None:
    for seed in range(40):
        frame = draw_frame(random.Random(seed), (64, 40), kind=kind)
        assert parse_record(format_record(frame.record)) == frame.record
        assert frame.record.activity != UNKNOWN_ACTIVITY
        assert frame.record.apps
        assert frame.record.topics


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_an_answer(kind: str) -> None:
    frame = draw_frame(random.Random(3), (64, 40), kind=kind)
    assert set(frame.answers) == set(Topic)
    for answer in frame.answers.values():
        assert answer.endswith(".")
        assert answer[0].isupper()


def test_the_size_changes_the_scale_and_not_the_truth() -> None:
    small, large = recording(5, 30, (640, 400)), recording(5, 30)
    assert [frame.record for frame in small] == [frame.record for frame in large]
    assert large[0].image.size == (1280, 800)
    assert large[0].image.mode == "RGB"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        draw_frame(random.Random(0), kind="radio")
