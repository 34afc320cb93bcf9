"""The image process over a real socketpair and a real arena: pictures arrive, failures answer, EOF ends it."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from vlmd_bridge.images import process
from vlmd_bridge.images.decode import Decoded, decode_picture
from vlmd_bridge.workers.arena import Arena, map_arena
from vlmd_bridge.workers.framing import MessageBuffer, encode_message
from vlmd_bridge.workers.image_messages import (
    MAX_LUMA_BYTES,
    Compare,
    Compared,
    ConfigureImages,
    FromImages,
    ImagesReady,
    Likeness,
    PictureFailed,
    Prepare,
    Prepared,
    Reference,
)
from vlmd_bridge.workers.messages import Close, ImageSpec, Message

SPEC = ImageSpec(factor=32, min_pixels=4096, max_pixels=40960, max_aspect_ratio=200)
CONFIG = ConfigureImages(max_source_pixels=50_000_000, max_source_bytes=50_000_000, memory_limit_bytes=1 << 30)


class ImageProcess:
    """A running image process and the daemon's end of its link."""

    def __init__(self, config: ConfigureImages) -> None:
        self.arena = Arena()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "vlmd_bridge.images.process"]
        command += ["--link-fd", str(theirs.fileno()), "--arena-fd", str(self.arena.fd)]
        self.process = subprocess.Popen(command, pass_fds=(theirs.fileno(), self.arena.fd), stdout=subprocess.PIPE)
        theirs.close()
        self.socket = ours
        ours.settimeout(20)
        self.answers = self._receive()
        self.send(config)
        ready = next(self.answers)
        assert isinstance(ready, ImagesReady)
        self.ready = ready

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(map(encode_message, messages)))

    def _receive(self) -> Iterator[FromImages]:
        buffer, decoder = MessageBuffer(), msgspec.msgpack.Decoder[FromImages](FromImages)
        while data := self.socket.recv(65536):
            yield from map(decoder.decode, buffer.feed(data))

    def ask(self, path: Path | str, spec: ImageSpec = SPEC, offset: int = 0, seq: int = 1) -> Message:
        self.send(Prepare(seq=seq, path=str(path), offset=offset, spec=spec))
        return next(self.answers)

    def hang_up(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        with suppress(OSError):
            self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.socket.close()
        self.arena.close()


@contextmanager
def image_process(config: ConfigureImages = CONFIG) -> Iterator[ImageProcess]:
    running = ImageProcess(config)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    Image.effect_mandelbrot((640, 400), (-2, -1, 1, 1), 50).convert("RGB").save(path)
    return path


def test_pixels_in_the_arena_equal_the_direct_decode(picture: Path) -> None:
    data = picture.read_bytes()
    direct = decode_picture(data, SPEC, name="frame", max_source_pixels=CONFIG.max_source_pixels)
    with image_process() as images:
        assert images.ready.pid == images.process.pid
        images.arena.take(SPEC.max_bytes)
        offset = images.arena.take(SPEC.max_bytes)
        answer = images.ask(picture, offset=offset, seq=7)
        assert isinstance(answer, Prepared)
        assert (answer.seq, answer.width, answer.height) == (7, direct.width, direct.height)
        assert (answer.source_width, answer.source_height) == (640, 400)
        assert answer.digest == hashlib.blake2b(data, digest_size=16).digest()
        assert 0 < answer.prepare_s < 10
        with map_arena(images.arena.fd, writable=False) as arena:
            assert arena[offset : offset + len(direct.pixels)] == direct.pixels
            assert not any(arena[:offset])


@pytest.mark.parametrize(("suffix", "differ"), [("png", False), ("jpg", True)])
def test_a_jpeg_decoded_at_a_fraction_is_another_picture(
    picture: Path, tmp_path: Path, suffix: str, differ: bool
) -> None:
    path = tmp_path / f"frame.{suffix}"
    Image.open(picture).convert("RGB").save(path)
    with image_process() as images:
        small = images.ask(path)
        images.send(Prepare(seq=2, path=str(path), offset=0, spec=SPEC, luma_offset=1 << 20))
        whole = next(images.answers)
    assert isinstance(small, Prepared) and isinstance(whole, Prepared)
    assert (small.digest != whole.digest) is differ


def test_answers_come_in_order_and_a_failure_costs_one_picture(picture: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    paths = [picture, tmp_path / "missing.png", picture, "/dev/zero", tmp_path / "fifo", picture]
    with image_process() as images:
        images.send(*(Prepare(seq=i, path=str(p), offset=0, spec=SPEC) for i, p in enumerate(paths)))
        answers = [next(images.answers) for _ in paths]
        codes = [answer.code if isinstance(answer, PictureFailed) else None for answer in answers]
        assert codes == [None, "image_not_found", None, "image_not_a_file", "image_not_a_file", None]
        assert [answer.seq for answer in answers if not isinstance(answer, ImagesReady)] == list(range(len(paths)))


@pytest.mark.parametrize("ending", ["eof", "close"])
def test_it_ends_with_status_0_and_a_silent_stdout(ending: str, picture: Path) -> None:
    with image_process() as images:
        images.ask(picture)
        if ending == "close":
            images.send(Close())
        else:
            images.hang_up()
        assert images.process.wait(10) == 0
        assert images.process.stdout is not None
        assert images.process.stdout.read() == b""


def test_eof_before_the_configuration_ends_it() -> None:
    ours, theirs = socket.socketpair()
    arena = Arena()
    command = [sys.executable, "-m", "vlmd_bridge.images.process"]
    command += ["--link-fd", str(theirs.fileno()), "--arena-fd", str(arena.fd)]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(), arena.fd)) as process:
        theirs.close()
        ours.close()
        assert process.wait(20) == 0
    arena.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_too_little_memory_to_compare_pictures_costs_no_picture(tmp_path: Path) -> None:
    for name in ("one.bmp", "other.bmp"):
        Image.effect_noise((3500, 2300), 6).convert("RGB").save(tmp_path / name)
    config = ConfigureImages(max_source_pixels=50_000_000, max_source_bytes=50_000_000, memory_limit_bytes=160 << 20)
    with image_process(config) as images:
        first = Prepare(seq=1, path=str(tmp_path / "one.bmp"), offset=0, spec=SPEC, luma_offset=1 << 20)
        images.send(first)
        one = next(images.answers)
        assert isinstance(one, Prepared)
        assert one.luma is not None
        reference = Reference(luma=one.luma, threshold=0)
        images.send(
            msgspec.structs.replace(
                first, seq=2, path=str(tmp_path / "other.bmp"), luma_offset=1 << 24, reference=reference
            )
        )
        other = next(images.answers)
        assert isinstance(other, Prepared)
        assert other.likeness is None
        assert other.luma is not None
        images.send(Compare(seq=3, reference=reference, others=(other.luma, other.luma)))
        assert next(images.answers) == Compared(seq=3, likenesses=(Likeness(same=False),))


@pytest.mark.parametrize(
    ("pixels", "samples", "told"),
    [
        (SPEC.max_bytes, MAX_LUMA_BYTES, None),
        (SPEC.max_bytes + 1, 0, "122881 bytes of pixels, where 122880 are free"),
        (0, MAX_LUMA_BYTES + 1, "8294401 bytes of luminance, where 8294400 are free"),
    ],
)
def test_a_picture_is_not_written_beyond_its_ranges(
    picture: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, samples: int, told: str | None
) -> None:
    made = Decoded(
        pixels=b"p" * pixels, width=1, height=1, source_width=2, source_height=2, luma=(1, samples, b"l" * samples)
    )
    monkeypatch.setattr(process, "decode_picture", lambda *_, **__: made)
    room = Arena(SPEC.max_bytes + MAX_LUMA_BYTES)
    with map_arena(room.fd, writable=True) as arena:
        request = Prepare(seq=1, path=str(picture), offset=0, spec=SPEC, luma_offset=SPEC.max_bytes)
        answer = process.prepare(request, CONFIG, arena)
        if told is None:
            assert isinstance(answer, Prepared)
            assert arena[:] == made.pixels + b"l" * samples
        else:
            assert isinstance(answer, PictureFailed) and answer.code == "image_invalid"
            assert "defect" in answer.error and told in answer.error
            assert not any(arena[:])
    room.close()


def test_ctrl_c_is_left_to_the_daemon(picture: Path) -> None:
    with image_process() as images:
        images.process.send_signal(signal.SIGINT)
        assert isinstance(images.ask(picture), Prepared)


def test_a_range_outside_the_arena_ends_the_process(picture: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with image_process() as images:
        images.send(Prepare(seq=1, path=str(picture), offset=images.arena.size_bytes - 10, spec=SPEC))
        assert images.process.wait(10) == 1
    assert "are not in the arena" in capfd.readouterr().err
