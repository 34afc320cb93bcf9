"""Verbs, help, version, and an installation without the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vlmd as client_package
import vlmd_bridge
import vlmd_protocol
from tests.cli.command import Command
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.main import VERBS, main
from vlmd_protocol.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    InvalidRequestError,
    ModelError,
    StartError,
    VlmdError,
)

# What a bare `pip install vlmd` brings besides its own packages.
BARE_MODULES = ("anyio", "idna", "msgspec", "typing_extensions")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert main([]) == exits.USAGE
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert f"vlmd {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlmd {vlmd_bridge.__version__}\n"


def test_unknown_verb_and_flag_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descrbe"]) == exits.USAGE
    assert "describe" in capsys.readouterr().err
    assert main(["ping", "--loud"]) == exits.USAGE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConnectError("x"), 3),
        (DeadlineError("x", phase="connect"), 3),
        (StartError("x"), 3),
        (StartError("x", code="model_not_found"), 4),
        (ModelError("x", code="model_not_loaded"), 4),
        (InvalidRequestError("x", code="invalid_params"), 2),
        (InvalidRequestError("x", code="image_not_found"), 1),
        (InvalidRequestError("x", code="context_length_exceeded"), 1),
        (BusyError("x", code="busy"), 1),
        (VlmdError("x"), 3),
    ],
)
def test_errors_have_their_exit_status(error: VlmdError, status: int) -> None:
    assert exits.exit_status(error) == status


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Environment of an interpreter that has what a bare installation has, and nothing else."""
    for package in (vlmd_protocol, vlmd_bridge, client_package):
        folder = Path(str(package.__file__)).parent
        (tmp_path / folder.name).symlink_to(folder)
    for module in BARE_MODULES:
        found = __import__(module).__file__
        assert found is not None
        source = Path(found).parent if found.endswith("__init__.py") else Path(found)
        (tmp_path / source.name).symlink_to(source)
    return {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}


def run_bare(bare: dict[str, str], *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    # -S: no site-packages.
    command = [sys.executable, "-S", "-m", "vlmd", *arguments]
    return subprocess.run(command, env=bare, capture_output=True, text=True, timeout=30, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("verb", [["describe", "x.png", "--json"], ["status", "--json"], ["demo", "--json"]])
def test_bare_installation_says_what_to_install(bare: dict[str, str], verb: list[str]) -> None:
    done = run_bare(bare, *verb)
    assert done.returncode == 4
    error = json.loads(done.stdout)
    assert error["code"] == "engine_not_installed"
    assert "pip install 'vlmd[mlx]'" in error["error"]
    assert "Traceback" not in done.stderr


def test_bare_installation_serves_with_a_fatal_line(bare: dict[str, str]) -> None:
    done = run_bare(bare, "serve", "--model", "demo")
    assert done.returncode == 4
    line = json.loads(done.stdout)
    assert line["status"] == "fatal"
    assert line["code"] == "engine_not_installed"
    assert "pip install 'vlmd[mlx]'" in done.stderr
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reader:
        done = run_bare(bare, "serve", "--ready-fd", str(write_end), pass_fds=(write_end,))
        os.close(write_end)
        assert json.loads(reader.read()) == line | {"error": line["error"]}
    assert done.returncode == 4


def test_bare_installation_has_help_and_version(bare: dict[str, str]) -> None:
    assert run_bare(bare, "--version").stdout == f"vlmd {vlmd_bridge.__version__}\n"
    assert run_bare(bare, "serve", "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "configuration", "code", "status"),
    [
        ([], "", "model_not_configured", 4),
        (["--model", "fake"], "width = 'x'", "config_invalid", 2),
        (["--model", "fake", "--width", "-1"], "", "config_invalid", 2),
    ],
)
def test_serve_that_cannot_start_prints_a_fatal_line(
    vlmd: Command, arguments: list[str], configuration: str, code: str, status: int
) -> None:
    vlmd.config.write_text(configuration)
    line = json.loads(vlmd.run("serve", *arguments, status=status).stdout)
    vlmd.config.write_text("")
    assert line["status"] == "fatal"
    assert line["code"] == code
    assert line["error"]


def test_serve_imports_nothing_heavy(vlmd: Command) -> None:
    code = (
        "import sys\n"
        "import vlmd_bridge.daemon.main as daemon\n"
        "daemon.run = lambda settings, **_: print(*sorted(sys.modules)) or 0\n"
        "from vlmd_bridge.cli.main import main\n"
        "sys.exit(main(['serve', '--model', 'fake']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=vlmd.environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint(
        {"PIL", "llguidance", "mlx", "mlx_vlm", "numpy", "rich", "transformers", "vlmd._sync_client"}
    )
