"""The sans-IO job: whatever the order of lines, losses and reading, each frame comes once and in order."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_server import batch_lines
from vlmd._job import DescribeJob
from vlmd._results import Batch
from vlmd._session import Batched
from vlmd_protocol.codec import encode_line
from vlmd_protocol.errors import InvalidRequestError, ProtocolError
from vlmd_protocol.messages import BatchLine, DescribeParams, ImageRef


def make(batch_size: int = 4, total: int | None = None) -> DescribeJob:
    return DescribeJob(DescribeParams(images=[ImageRef(image_path="")], batch_size=batch_size), total)


def frames(start: int, count: int) -> list[ImageRef]:
    return [ImageRef(image_path=f"/{at}.png", index=at) for at in range(start, start + count)]


def lines_for(job: DescribeJob, at: int, request_id: int) -> list[Batched]:
    params = msgspec.json.decode(encode_line(job.params(at)))
    lines = [msgspec.convert(line, BatchLine) for line in batch_lines({"id": request_id, "params": params})]
    job.asked(at, request_id)
    return [Batched(request_id, line.results, line.progress, line.done is True) for line in lines]


@settings(max_examples=300)
@given(st.integers(1, 5), st.integers(0, 40), st.randoms(use_true_random=False))
def test_each_frame_once_and_in_order(batch_size: int, count: int, random: Random) -> None:
    job = make(batch_size)
    job.chunk_frames = batch_size * random.randint(2, 3)
    queues: list[list[Batched]] = []
    taken, next_id, got = 0, 1, list[Batch]()
    while not job.finished:
        if job.wants_chunk:
            chunk = frames(taken, min(job.chunk_frames, count - taken))
            taken += len(chunk)
            job.add(chunk)
            if len(chunk) < job.chunk_frames:
                job.end_input()
        if job.wants_peek:
            if taken == count:
                job.end_input()
            else:
                job.note_more()
        if (batch := job.take()) is not None:
            got.append(batch)
            continue
        for at in job.unasked():
            queues.append(lines_for(job, at, next_id))
            next_id += 1
        if random.random() < 0.1:  # the connection is lost
            job.unask()
            queues.clear()
        elif queues := [queue for queue in queues if queue]:
            job.receive(random.choice(queues).pop(0))
        assert taken - sum(len(batch.results) for batch in got) <= 2 * job.chunk_frames
    assert [frame.index for batch in got for frame in batch.results] == list(range(count))
    assert [batch.batch for batch in got] == list(range(1, len(got) + 1))
    assert [batch.done for batch in got] == [False] * (len(got) - 1) + [True] * bool(got)
    assert all(len(batch.results) == batch_size for batch in got[:-1])
    currents = [batch.progress.current for batch in got]
    assert currents == sorted(currents)
    assert not got or got[-1].progress.total == got[-1].progress.current == count


def test_the_total_is_known_for_sized_input_only() -> None:
    job = make(batch_size=2, total=4)
    job.add(frames(0, 4))
    for line in lines_for(job, 0, 1):
        job.receive(line)
    batch = job.take()
    assert batch is not None
    assert batch.progress.total == 4
    assert job.take() is None  # held back: there may be a further frame
    assert job.wants_peek
    job.end_input()
    batch = job.take()
    assert batch is not None
    assert batch.done


@pytest.mark.parametrize("wrong", [[1, 0], [0, 1, 2], [5]])
def test_results_of_other_frames_are_refused(wrong: list[int]) -> None:
    job = make(batch_size=2)
    job.add(frames(0, 2))
    (line,) = lines_for(job, 0, 1)
    results = [msgspec.structs.replace(line.results[0], index=index) for index in wrong]
    with pytest.raises(ProtocolError, match="come next"):
        job.receive(Batched(1, results, None, False))


def test_requests_of_one_recording_name_one_series_and_another_after_a_loss() -> None:
    job = make(batch_size=2)
    job.add(frames(0, 2))
    series = job.params(0).series
    for line in lines_for(job, 0, 1):
        job.receive(line)
    job.note_more()
    assert job.take() is not None
    job.add(frames(2, 2))
    assert job.params(0).series == series is not None
    job.unask()
    assert job.params(0).series not in (series, None)
    other = make(batch_size=2)
    other.add(frames(0, 2))
    assert other.params(0).series not in (job.params(0).series, series)


def test_a_slow_source_is_compared_with_the_request_before() -> None:
    job: DescribeJob[object] = DescribeJob(DescribeParams(images=frames(0, 1), batch_size=2, dedupe=True), None)
    job.add(frames(0, 2))
    job.add(frames(2, 2))
    assert job.unasked() == [0]
    for line in lines_for(job, 0, 1):
        assert job.unasked() == []
        job.receive(line)
    assert job.unasked() == [1]
    full: DescribeJob[object] = DescribeJob(DescribeParams(images=frames(0, 1), batch_size=2, dedupe=True), None)
    full.add(frames(0, full.chunk_frames))
    full.add(frames(full.chunk_frames, full.chunk_frames))
    assert full.unasked() == [0, 1]


@pytest.mark.parametrize(("options", "count"), [({}, 2), ({"mode": "interleaved"}, 4), ({"dedupe": False}, 4)])
def test_a_request_that_is_alone_or_not_compared_names_no_series(options: dict[str, Any], count: int) -> None:
    job: DescribeJob[object] = DescribeJob(DescribeParams(images=frames(0, 1), batch_size=2, **options), count)
    job.add(frames(0, 2))
    if count == 2:
        job.end_input()
    assert job.params(0).series is None


def test_an_early_end_is_refused() -> None:
    job = make(batch_size=1)
    job.add(frames(0, 2))
    line = lines_for(job, 0, 1)[0]
    with pytest.raises(ProtocolError, match="1 frames early"):
        job.receive(Batched(1, line.results, None, True))


@pytest.mark.parametrize("batch_size", [0, -1, 257])
def test_a_batch_size_out_of_bounds(batch_size: int) -> None:
    with pytest.raises(InvalidRequestError, match="from 1 to 256"):
        make(batch_size)
