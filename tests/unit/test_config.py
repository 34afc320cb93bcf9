"""Settings come from built-in < file < environment < flag, and each says where it came from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.support.settings_table import row_start
from vlmd_bridge import config
from vlmd_bridge.config.layers import BUILT_IN
from vlmd_bridge.config.recommend import no_model_message, recommended_model
from vlmd_bridge.config.settings import Settings, keys
from vlmd_bridge.daemon.settings import DaemonSettings

_GIB = 1024**3


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def test_each_layer_covers_the_one_below(tmp_path: Path) -> None:
    file = write(tmp_path, 'model = "from-file"\nbatch_size = 6\nwidth = 3\nmode = "interleaved"\n')
    found = config.load(
        {"model": "from-flag", "width": None},
        environ={"VLMD_MODEL": "from-environment", "VLMD_BATCH_SIZE": "7"},
        file=file,
    )
    assert found.settings == Settings(model="from-flag", batch_size=7, width=3, mode="interleaved")
    assert found.origins["model"].origin == "flag --model"
    assert found.origins["batch_size"].origin == "environment VLMD_BATCH_SIZE"
    assert found.origins["width"].origin == f"file {file}"
    assert found.origins["threads"].origin == BUILT_IN


def test_adr_names_count_where_the_own_one_is_unset(tmp_path: Path) -> None:
    adr = {
        "ESCRIBANO_VLM_MODEL": "m",
        "ESCRIBANO_VLM_BATCH_SIZE": "2",
        "ESCRIBANO_VLM_MAX_TOKENS": "900",
        "ESCRIBANO_MLX_SOCKET_PATH": "/tmp/escribano-mlx.sock",
        "ESCRIBANO_PYTHON_PATH": "/usr/bin/python3",
        "ESCRIBANO_VERBOSE": "true",
    }
    file = write(tmp_path, "")
    found = config.load(environ=adr | {"VLMD_MODEL": "own", "VLMD_BATCH_SIZE": ""}, file=file)
    assert found.settings == Settings(
        model="own",
        batch_size=2,
        max_tokens=900,
        socket="/tmp/escribano-mlx.sock",
        python="/usr/bin/python3",
        verbose=True,
    )
    assert found.origins["batch_size"].origin == "environment ESCRIBANO_VLM_BATCH_SIZE"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("on", True), ("Yes", True), ("0", False), ("no", False)])
def test_switches_in_the_environment(tmp_path: Path, text: str, value: bool) -> None:
    assert config.load(environ={"VLMD_VERBOSE": text}, file=write(tmp_path, "")).settings.verbose is value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batch_size = ", "not TOML"),
        ('batch_size = "4"', "batch_size"),
        ("batch_size = 0", ">= 1"),
        ("batch_size = 10000", "<= 256"),
        ("batch_size = true", "batch_size"),
        ('mode = "sideways"', "sideways"),
        ("drain_timeout_s = nan", "drain_timeout_s"),
        ('model = ""', "model"),
        ('model = "a\\u0000b"', "model"),
        ("[model]\nname = 'x'", "model"),
    ],
)
def test_bad_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(config.ConfigError, match=named) as caught:
        config.load(environ={}, file=file)
    assert str(file) in str(caught.value)


def test_bad_environment_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="environment VLMD_MAX_TOKENS: max_tokens cannot be 'many'"):
        config.load(environ={"VLMD_MAX_TOKENS": "many"}, file=write(tmp_path, ""))


def test_file_that_is_no_utf8_or_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(config.ConfigError, match="not TOML"):
        config.load(environ={}, file=file)
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.load(environ={}, file=tmp_path)


def test_chosen_file_must_exist_the_default_one_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(config.ConfigError, match="VLMD_CONFIG"):
        config.load(environ={"VLMD_CONFIG": "x"}, file=tmp_path / "absent.toml")
    monkeypatch.setattr("vlmd_bridge.paths.config_file", lambda: tmp_path / "absent.toml")
    assert config.load(environ={}).settings == Settings()


def test_unknown_key_is_a_warning(tmp_path: Path) -> None:
    found = config.load(environ={}, file=write(tmp_path, "modle = 'x'\nwidth = 1"))
    assert found.settings.width == 1
    assert len(found.warnings) == 1
    assert "'modle'" in found.warnings[0]


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    folder = tmp_path / "sub"
    folder.mkdir()
    found = config.load({"model": "./m"}, environ={"VLMD_SOCKET": "~/s"}, file=write(folder, 'log_file = "a/l"'))
    assert found.settings.model == str(tmp_path / "m")
    assert found.settings.socket == "/home/u/s"
    assert found.settings.log_file == str(folder / "a/l")
    for name in ("demo", "org/name"):
        (tmp_path / name).mkdir(parents=True)
        (folder / name).mkdir(parents=True)
    for model, meant in (("org/name", str(tmp_path / "org/name")), ("org/other", "org/other"), ("demo", "demo")):
        assert config.load({"model": model}, environ={}, file=found.file).settings.model == meant
        assert config.load({"text_model": model}, environ={}, file=found.file).settings.text_model == meant
    in_file = config.load(environ={}, file=write(folder, 'model = "org/name"'))
    assert in_file.settings.model == str(folder / "org/name")


def test_fingerprint_changes_with_what_changes_answers(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    plain = config.load(environ={}, file=file)
    assert plain.fingerprint == config.load({"verbose": True, "width": 9}, environ={}, file=file).fingerprint
    assert plain.fingerprint != config.load({"model": "other"}, environ={}, file=file).fingerprint
    assert plain.fingerprint != config.load({"text_model": "other"}, environ={}, file=file).fingerprint
    assert plain.fingerprint != config.load({"max_source_pixels": 1}, environ={}, file=file).fingerprint


def test_every_setting_is_described_and_the_daemons_defaults_agree() -> None:
    assert [key.name for key in keys()] == [field.name for field in msgspec.structs.fields(Settings)]
    assert all(key.meaning for key in keys())
    daemon = DaemonSettings(model="demo", socket_path=Path("/x"))
    for key in keys():
        if key.name not in {"model", "socket", "python", "log_file", "idle_timeout_s"} and hasattr(daemon, key.name):
            assert getattr(daemon, key.name) == key.default, key.name


def test_recommended_model_suits_the_machine() -> None:
    assert recommended_model(metal=True, memory=64 * _GIB).endswith("2B-Instruct-bf16")
    assert recommended_model(metal=True, memory=8 * _GIB).endswith("4bit")
    assert recommended_model(metal=False, memory=0).endswith("4bit")
    message = no_model_message()
    assert "--model demo" in message
    assert f"hf download {recommended_model()}" in message


def test_readme_names_every_setting_with_its_variables() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    for key in keys():
        assert row_start(key) in readme, row_start(key)
