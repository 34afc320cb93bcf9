"""The README's lines for socat work as printed, half-closing included: run by a shell, with the real socat."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon

README = Path(__file__).resolve().parents[2] / "README.md"

# The one thing that is replaced: the user's own shared daemon is none of a test's business.
SHARED_SOCKET = "/tmp/vlmd-$(id -u)/shared-1.sock"

pytestmark = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed (CI installs it)")


def blocks() -> list[str]:
    """Return the shell blocks of the section about doing it by hand."""
    _, _, rest = README.read_text().partition("\n## By hand\n")
    section, _, _ = rest.partition("\n## ")
    return re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def answers(daemon: Daemon, block: str, folder: Path) -> list[dict[str, Any]]:
    """Run `block` in `folder`; the lines that came back."""
    assert SHARED_SOCKET in block
    script = block.replace(SHARED_SOCKET, str(daemon.socket_path))
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_section_is_there() -> None:
    assert len(blocks()) == 3
    assert all(line.count("socat") <= 1 for block in blocks() for line in block.splitlines())


def test_ping_and_describe(daemon: Daemon, pictures: list[str], tmp_path: Path) -> None:
    shutil.copy(pictures[0], tmp_path / "frame.png")
    ping, batch = answers(daemon, blocks()[0], tmp_path)
    assert ping["id"] == 1
    assert ping["result"]["state"] == "ready"
    assert batch["id"] == 2
    assert batch["partial"] is False
    assert batch["done"] is True
    assert batch["progress"] == {"current": 1, "total": 1}
    [result] = batch["results"]
    assert result["imagePath"] == str(tmp_path / "frame.png")
    assert result["timestamp"] == 42.5
    assert "error" not in result
    assert result["description"]


def test_several_requests_through_a_half_closed_connection(daemon: Daemon, tmp_path: Path) -> None:
    status, ping = answers(daemon, blocks()[1], tmp_path)
    assert [status["id"], ping["id"]] == [3, 4]
    assert status["result"]["socket"] == str(daemon.socket_path)


def test_wrong_request_is_answered_and_the_next_one_too(daemon: Daemon, tmp_path: Path) -> None:
    error, ping = answers(daemon, blocks()[2], tmp_path)
    assert error["id"] == 5
    assert error["code"] == "invalid_params"
    assert isinstance(error["error"], str)
    assert ping["id"] == 6


def test_half_closing_waits_for_a_slow_answer(start_daemon: Any, pictures: list[str], tmp_path: Path) -> None:
    # Longer than the half second after which socat gives up by default: `-t` in the README's line is needed.
    daemon = start_daemon(model="fake:load_s=1").wait_bound()
    shutil.copy(pictures[0], tmp_path / "frame.png")
    _, batch = answers(daemon, blocks()[0], tmp_path)
    assert batch["done"] is True
    assert batch["results"][0]["description"]
