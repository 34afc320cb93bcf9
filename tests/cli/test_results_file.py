"""`--output` resumes after any end, and never damages a file that is not its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec
import pytest

from vlmd import Image
from vlmd_bridge.cli import results_file
from vlmd_bridge.cli.results_file import ResultsFile, ResultsFileError
from vlmd_protocol.messages import FrameResult


def result(path: str, index: int = 0, *, code: str | None = None) -> FrameResult:
    return FrameResult(
        index=index,
        timestamp=None,
        image_path=path,
        description="d",
        activity="a",
        apps=[],
        topics=[],
        code=code,
        error=None if code is None else "why",
    )


def missing(output: ResultsFile, *paths: str, first: int = 0) -> list[int]:
    """Indexes of the pictures that are still to be described, of `paths` that are asked for."""
    images = [Image(path, index=index) for index, path in enumerate(paths, first)]
    return [image.index for image in output.missing(images) if image.index is not None]


FAILED = "image_not_found"


@pytest.mark.parametrize(
    ("kept", "asked", "left"),
    [
        ([], ["/a"], [0]),
        ([result("/a"), result("/b", 1, code=FAILED)], ["/a", "/b", "/c"], [1, 2]),
        # The last line of a picture counts.
        ([result("/a", code=FAILED), result("/a")], ["/a"], []),
        ([result("/a"), result("/a", code=FAILED)], ["/a"], [0]),
        ([result("/a", 5), result("/a", code=FAILED)], ["/a"], [0]),
        ([result("/a", code=FAILED), result("/a", 5)], ["/a"], []),
        # A path twice, as at two times: each entry has its own result.
        ([result("/a", code=FAILED), result("/a", 1)], ["/a", "/a"], [0]),
        ([result("/a"), result("/a", 1, code=FAILED)], ["/a", "/a"], [1]),
        ([result("/a"), result("/a")], ["/a", "/a"], [1]),
        # Pictures were added, left out or moved.
        ([result("/a"), result("/c", 1)], ["/a", "/b", "/c"], [1]),
        ([result("/a"), result("/b", 1), result("/c", 2)], ["/c", "/b"], []),
        ([result("/a"), result("/a", 1)], ["/b", "/x", "/a", "/a", "/a"], [0, 1, 4]),
    ],
)
def test_what_is_left_is_what_no_result_is_of(
    tmp_path: Path, kept: list[FrameResult], asked: list[str], left: list[int]
) -> None:
    file = tmp_path / "out.jsonl"
    with ResultsFile(file) as output:
        assert missing(output, *asked) == list(range(len(asked)))
        output.append(kept)
    with ResultsFile(file) as output:
        assert missing(output, *asked) == left


def test_torn_last_line_is_cut_off_at_every_length(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    whole = msgspec.json.encode(result("/ä")) + b"\n"
    for kept in range(len(whole)):
        file.write_bytes(whole + whole[:kept])
        with ResultsFile(file) as output:
            assert missing(output, "/ä") == []
            output.append([result("/b")])
        assert file.read_bytes() == whole + msgspec.json.encode(result("/b")) + b"\n"


@pytest.mark.parametrize(
    "content",
    [b"notes of mine\n", b'{"other": 1}\n', b"no line feed", b'{"id":1', b"\xff\xfe\n", b"[" * 5000 + b"\n"],
)
def test_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes"
    file.write_bytes(content)
    with pytest.raises(ResultsFileError, match="line 1 is no result"):
        ResultsFile(file)
    assert file.read_bytes() == content


def test_second_writer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with ResultsFile(file), pytest.raises(ResultsFileError, match="Another"):
        ResultsFile(file)
    with ResultsFile(file):
        pass


def test_folder_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "out"):
        with pytest.raises(ResultsFileError, match="cannot be opened"):
            ResultsFile(path)


def test_full_disk_is_an_error_and_partial_writes_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    file = tmp_path / "out.jsonl"
    with ResultsFile(file) as output:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
            output.append([result("/a"), result("/b")])

        def no_space(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", no_space)
            with pytest.raises(ResultsFileError, match="No space left"):
                output.append([result("/c")])
    with ResultsFile(file) as output:
        assert missing(output, "/a", "/b", "/c") == [2]


def test_a_failed_sync_at_the_end_is_an_error_unless_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    file = tmp_path / "out.jsonl"
    with pytest.raises(ResultsFileError, match=r"out\.jsonl cannot be synced.*error"), ResultsFile(file) as output:
        output.append([result("/a")])
    with pytest.raises(KeyboardInterrupt), ResultsFile(file) as output:
        assert missing(output, "/a") == []
        raise KeyboardInterrupt


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, FileIO]]:
    """A FIFO and its reader."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        yield path, reader


def test_a_pipe_is_written_and_never_synced(pipe: tuple[Path, FileIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "SYNC_INTERVAL_S", 0.0)
    path, reader = pipe
    with ResultsFile(path) as output:
        output.append([result("/a")])
        output.append([result("/b")])
    lines = (reader.read(65536) or b"").splitlines()
    assert [msgspec.json.decode(line, type=FrameResult) for line in lines] == [result("/a"), result("/b")]


def test_a_pipe_whose_reader_left_is_an_error(pipe: tuple[Path, FileIO]) -> None:
    path, reader = pipe
    with ResultsFile(path) as output:
        reader.close()
        with pytest.raises(ResultsFileError, match=r"Broken pipe\.$"):
            output.append([result("/a")])


def test_a_device_is_written_by_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "SYNC_INTERVAL_S", 0.0)
    with ResultsFile(Path(os.devnull)) as one, ResultsFile(Path(os.devnull)) as other:
        for output in (one, other):
            output.append([result("/a")])
