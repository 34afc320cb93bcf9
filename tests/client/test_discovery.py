"""Where a daemon's command is looked for, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import vlmd
from vlmd import _discovery
from vlmd._discovery import find_command


@pytest.fixture
def bare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine without vlmd: nothing on PATH, in the usual folders, in the home or here."""
    empty = folder / "home"
    empty.mkdir()
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.chdir(empty)
    monkeypatch.setattr(_discovery, "USUAL_FOLDERS", (str(empty / "usual"),))
    monkeypatch.setattr(sys, "executable", "")
    return {"PATH": str(empty / "bin"), "HOME": str(empty)}


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def interpreter(path: Path, *, missing: str = "") -> Path:
    """A stand-in that answers the probe as an interpreter would."""
    return program(path, f"#!/bin/sh\necho {missing}\n")


def test_named_commands_come_first_and_alone(bare: dict[str, str], folder: Path) -> None:
    python = interpreter(folder / "py")
    assert find_command(python=python, environment=bare) == [str(python), "-m", "vlmd"]
    assert find_command(command=f"{python} -m 'my vlmd'", environment=bare) == [str(python), "-m", "my vlmd"]
    assert find_command(command=[str(python), "x"], environment=bare) == [str(python), "x"]
    env = bare | {"VLMD_COMMAND": f"{python} run", "VLMD_PYTHON": "/nowhere"}
    assert find_command(environment=env) == [str(python), "run"]
    for name in ("VLMD_PYTHON", "ESCRIBANO_PYTHON_PATH"):
        assert find_command(environment=bare | {name: str(python)}) == [str(python), "-m", "vlmd"]


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"VLMD_PYTHON": "/nowhere/python"}, "VLMD_PYTHON names /nowhere/python: no such file"),
        ({"ESCRIBANO_PYTHON_PATH": "/etc"}, "names /etc: not a file"),
        ({"VLMD_PYTHON": "/etc/passwd"}, "not executable"),
        ({"VLMD_COMMAND": "/nowhere/vlmd serve"}, "VLMD_COMMAND names /nowhere/vlmd: no such file"),
        ({"VLMD_COMMAND": "  "}, "names no command"),
    ],
)
def test_a_named_command_that_will_not_do(bare: dict[str, str], variables: dict[str, str], match: str) -> None:
    with pytest.raises(vlmd.DaemonNotFoundError, match=match):
        find_command(environment=bare | variables)


def test_environments_before_the_path(bare: dict[str, str], folder: Path) -> None:
    home = folder / "home"
    on_path = program(home / "bin" / "vlmd", "#!/bin/sh\n")
    assert find_command(environment=bare) == [str(on_path)]
    in_home = interpreter(home / ".venv" / "bin" / "python")
    assert find_command(environment=bare) == [str(in_home), "-m", "vlmd"]
    active = interpreter(folder / "active" / "bin" / "python")
    env = bare | {"VIRTUAL_ENV": str(folder / "active")}
    assert find_command(environment=env) == [str(active), "-m", "vlmd"]


def test_the_usual_folders_come_last(bare: dict[str, str], folder: Path) -> None:
    usual = program(folder / "home" / "usual" / "vlmd", "#!/bin/sh\n")
    assert find_command(environment=bare) == [str(usual)]


@pytest.mark.parametrize("form", ["#!{python}\n", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"])
def test_a_script_is_asked_through_its_interpreter(bare: dict[str, str], folder: Path, form: str) -> None:
    python = interpreter(folder / "a folder" / "python3", missing="mlx_vlm")
    script = program(folder / "home" / "bin" / "vlmd", form.format(python=python))
    if "exec" in form:
        with pytest.raises(vlmd.DaemonNotFoundError, match="without an engine"):
            find_command(environment=bare)
        assert find_command(environment=bare, needs_engine=False) != []
    interpreter(python)
    assert find_command(environment=bare) == [str(script)]


def test_every_place_tried_is_named(bare: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "home"
    client_only = interpreter(folder / "env" / "bin" / "python", missing="vlmd_bridge,mlx_vlm")
    no_engine = interpreter(home / ".venv" / "bin" / "python", missing="mlx_vlm")
    hangs = program(folder / "hangs", "#!/bin/sh\nexec /bin/sleep 60\n")
    program(home / "bin" / "vlmd", f"#!{hangs.rename(hangs.with_name('python-hangs'))}\n")
    monkeypatch.setattr(_discovery, "_PROBE_TIMEOUT_S", 0.2)
    with pytest.raises(vlmd.DaemonNotFoundError) as caught:
        find_command(environment=bare | {"VIRTUAL_ENV": str(folder / "env")})
    message = str(caught.value)
    print(message)
    assert f"{client_only}: vlmd is not installed there" in message
    assert f"{no_engine}: vlmd is installed there without an engine" in message
    assert "timed out" in message
    assert f"{home / 'usual' / 'vlmd'}: no such file" in message
    assert "pip install 'vlmd[mlx]'" in message


def test_this_interpreter_is_asked_in_process(bare: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(interpreter(Path(bare["HOME"]) / "python", missing="never run")))
    monkeypatch.setattr(_discovery, "_probe", None)
    assert find_command(environment=bare, needs_engine=False) == [sys.executable, "-m", "vlmd"]
