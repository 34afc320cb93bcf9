"""The log never stops the daemon, is private, and stays bounded although several processes write it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmd_bridge import logs

LOGGER = logging.getLogger("vlmd")


@pytest.fixture(autouse=True)
def _restored_logger() -> Iterator[None]:
    yield
    logs.setup_logging(None, stderr=False, verbose=False)


def test_file_and_folder_are_private_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077):
        path = tmp_path / f"logs-{umask:o}" / "vlmd.log"
        old = os.umask(umask)
        try:
            assert logs.setup_logging(path, stderr=False, verbose=False) == path
        finally:
            os.umask(old)
        LOGGER.info("model %s is ready", "demo")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        line = path.read_text()
        assert line.endswith(f" {os.getpid()} INFO model demo is ready\n")


def test_stderr_lines_have_the_prefix(capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup_logging(None, stderr=True, verbose=False)
    LOGGER.info("listening")
    LOGGER.warning("slow")
    LOGGER.debug("not shown")
    try:
        raise ValueError("why")
    except ValueError:
        LOGGER.exception("failed")
    assert capfd.readouterr().err == "[MLX] listening\n[MLX] warning: slow\n[MLX] error: failed: ValueError: why\n"


def test_control_characters_cannot_forge_a_line(tmp_path: Path) -> None:
    path = logs.setup_logging(tmp_path / "vlmd.log", stderr=False, verbose=True)
    assert path is not None
    LOGGER.debug("no file at %s", "/a\n2026 1 INFO forged\x1b[2J")
    assert len(path.read_text().splitlines()) == 1
    assert "\\x0a2026" in path.read_text()


def test_traceback_is_indented(tmp_path: Path) -> None:
    path = logs.setup_logging(tmp_path / "vlmd.log", stderr=False, verbose=False)
    assert path is not None
    try:
        raise ValueError("why")
    except ValueError:
        LOGGER.exception("failed")
    first, *rest = path.read_text().splitlines()
    assert first.endswith("ERROR failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_rotation_keeps_a_bounded_number_of_bounded_files(tmp_path: Path) -> None:
    handler = logs.RotatingFileHandler(tmp_path / "vlmd.log", max_bytes=500, kept_files=2)
    for number in range(200):
        handler.emit(_record(f"line {number}"))
    handler.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["vlmd.log", "vlmd.log.1", "vlmd.log.2"]
    assert all(file.stat().st_size <= 500 for file in files)
    assert (tmp_path / "vlmd.log").read_text().splitlines()[-1] == "line 199"


def test_several_processes_share_the_file_and_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "vlmd.log"
    code = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from vlmd_bridge import logs\n"
        "handler = logs.RotatingFileHandler(Path(sys.argv[1]), max_bytes=4000, kept_files=50)\n"
        "for n in range(300):\n"
        "    text = f'{sys.argv[2]} {n}'\n"
        "    handler.emit(logging.LogRecord('vlmd', logging.INFO, '', 0, text, None, None))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {n}" for name in "abc" for n in range(300))


def test_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = logs.setup_logging(tmp_path / "vlmd.log", stderr=False, verbose=False)
    assert path is not None
    path.unlink()
    LOGGER.info("still here")
    assert "still here" in path.read_text()


def test_unwritable_folder_costs_the_file_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    assert logs.setup_logging(tmp_path / "folder" / "vlmd.log", stderr=True, verbose=False) is None
    assert "no log file" in capfd.readouterr().err


def test_full_disk_costs_lines_and_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = logs.setup_logging(tmp_path / "vlmd.log", stderr=False, verbose=False)
    assert path is not None

    def no_space(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_space)
        LOGGER.info("lost")
        LOGGER.info("lost")
    LOGGER.info("kept")
    assert path.read_text().startswith("2 lines before this one could not be written\n")
    assert path.read_text().splitlines()[-1].endswith("kept")


def test_stderr_that_nobody_reads_does_not_block() -> None:
    code = (
        "import logging\n"
        "from vlmd_bridge import logs\n"
        "logs.setup_logging(None, stderr=True, verbose=False)\n"
        "for n in range(2000): logging.getLogger('vlmd').info('x' * 200)\n"
        "print('done')\n"
    )
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write_end, timeout=30)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert done.stdout == b"done\n"


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("vlmd", logging.INFO, "", 0, text, None, None)
