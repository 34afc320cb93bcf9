"""Every path that is not a readable, non-empty regular file has its own clear error, and none of them blocks."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from vlmd_bridge.images.errors import PictureError, shown
from vlmd_bridge.images.sources import read_source
from vlmd_bridge.workers.framing import encode_message
from vlmd_bridge.workers.image_messages import Prepare
from vlmd_bridge.workers.messages import ImageSpec

_MAX_BYTES = 1000

# A FIFO or device that blocks fails the test instead of the run.
pytestmark = pytest.mark.timeout(10)


def failure(path: str | Path, max_bytes: int = _MAX_BYTES) -> PictureError:
    with pytest.raises(PictureError) as caught:
        read_source(str(path), max_bytes=max_bytes)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return caught.value


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's name on every platform."""
    with tempfile.TemporaryDirectory(prefix="vlmd-", dir="/tmp") as folder:
        yield Path(folder)


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(bytes(range(250)) * 4)
    assert read_source(str(path), max_bytes=_MAX_BYTES) == path.read_bytes()


def test_a_symlink_is_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to("frame.png")
    (tmp_path / "folder").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    assert read_source(str(tmp_path / "link"), max_bytes=1) == b"x"
    assert failure(tmp_path / "folder").code == "image_not_a_file"
    assert failure(tmp_path / "dangling").code == "image_not_found"
    assert failure(tmp_path / "loop").code == "image_unreadable"


def test_missing(tmp_path: Path) -> None:
    error = failure(tmp_path / "b.png")
    assert error.code == "image_not_found"
    assert str(error) == f"File not found: {tmp_path}/b.png"


def test_a_file_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert failure(tmp_path / "a.png" / "b.png").code == "image_not_found"


@pytest.mark.parametrize("path", ["frame.png", "./frame.png", "~/frame.png", "file:///frame.png", ""])
def test_relative(path: str) -> None:
    assert failure(path).code == "image_path_relative"


def test_a_directory(tmp_path: Path) -> None:
    error = failure(tmp_path)
    assert error.code == "image_not_a_file"
    assert "a directory" in str(error)


def test_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    error = failure(tmp_path / "fifo.png")
    assert error.code == "image_not_a_file"
    assert "a FIFO" in str(error)


def test_a_name_that_becomes_a_fifo_between_look_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "frame.png").write_bytes(b"x")
    regular = (tmp_path / "frame.png").stat()
    monkeypatch.setattr(os, "stat", lambda _path: regular)
    assert failure(tmp_path / "fifo.png").code == "image_not_a_file"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device(device: str) -> None:
    error = failure(device)
    assert error.code == "image_not_a_file"
    assert "a device" in str(error)


def test_a_socket(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "s"))
        error = failure(short_path / "s")
    assert error.code == "image_not_a_file"
    assert "a socket" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; the simulated case below runs for root too")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(b"x")
    path.chmod(0)
    assert failure(path).code == "image_unreadable"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_the_system_refuses(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise error

    (tmp_path / "frame.png").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refuse)
    assert failure(tmp_path / "frame.png").code == "image_unreadable"


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "frame.png").touch()
    assert failure(tmp_path / "frame.png").code == "image_empty"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_a_file_of_proc_is_empty_rather_than_read() -> None:
    assert failure("/proc/self/mem").code == "image_empty"


def test_larger_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(bytes(_MAX_BYTES + 1))
    error = failure(path)
    assert error.code == "image_too_large"
    assert "1000 bytes" in str(error)
    path.write_bytes(bytes(_MAX_BYTES))
    assert len(read_source(str(path), max_bytes=_MAX_BYTES)) == _MAX_BYTES


@pytest.mark.parametrize(
    ("real_bytes", "code"), [(_MAX_BYTES, None), (_MAX_BYTES + 1, "image_too_large"), (0, "image_empty")]
)
def test_a_file_that_changes_after_it_was_looked_at(
    real_bytes: int, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten = tmp_path / "ten"
    ten.write_bytes(bytes(10))
    status = ten.stat()
    path = tmp_path / "frame.png"
    path.write_bytes(bytes(real_bytes))
    monkeypatch.setattr(os, "stat", lambda _path: status)
    monkeypatch.setattr(os, "fstat", lambda _fd: status)
    if code is None:
        assert len(read_source(str(path), max_bytes=_MAX_BYTES)) == real_bytes
    else:
        assert failure(path).code == code


@pytest.mark.parametrize("path", ["/" + "x" * 300 + ".png", "/" + "folder/" * 2000 + "x.png"])
def test_a_very_long_path_is_shortened_in_the_message(path: str) -> None:
    error = failure(path)
    assert error.code == "image_not_found"
    assert str(error).endswith("x.png")


def test_a_nul_byte() -> None:
    error = failure("/tmp/a\0b.png")
    assert error.code == "image_not_found"
    assert "a\\x00b.png" in str(error)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    error = failure(path)
    assert error.code == "image_not_found"
    str(error).encode()
    try:
        with open(path, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert read_source(path, max_bytes=1) == b"x"


def test_a_name_that_stands_for_no_bytes() -> None:
    assert failure("/tmp/\ud800.png").code == "image_not_found"


def test_names_that_are_not_utf_8_do_not_fit_in_a_message() -> None:
    # So the daemon never gets to send one: on the wire a path is UTF-8.
    spec = ImageSpec(factor=1, min_pixels=0, max_pixels=1, max_aspect_ratio=1)
    with pytest.raises((UnicodeEncodeError, msgspec.ValidationError)):
        encode_message(Prepare(seq=1, path="/\udcff.png", offset=0, spec=spec))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(b"x")
    before = os.dup(0)
    os.close(before)
    read_source(str(tmp_path / "frame.png"), max_bytes=1)
    failure(tmp_path)
    failure("/dev/zero")
    after = os.dup(0)
    os.close(after)
    assert after == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/a/b.png", "/a/b.png"), ("/a\nb", "/a\\nb"), ("/é", "/é"), ("/\udcff", "/\\udcff"), ("/\x1b[2J", "/\\x1b[2J")],
)
def test_shown(text: str, expected: str) -> None:
    assert shown(text) == expected
