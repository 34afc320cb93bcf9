"""A result is found for the same question of the same model, and for no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vlmd_bridge.models.fingerprint import FileStamp, ModelChanged, fingerprint, hash_file, stamps
from vlmd_bridge.store import identity
from vlmd_bridge.store.bounds import DEFAULT_BOUNDS
from vlmd_bridge.store.file import StoreFile
from vlmd_bridge.store.identity import ModelIdentity, request_digest
from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    EngineInfo,
    ImageSpec,
    Picture,
    RecordConstraint,
    Sampling,
    SchemaConstraint,
    Start,
    Text,
    Turn,
)

SPEC = ImageSpec(factor=32, min_pixels=1024, max_pixels=4096, max_aspect_ratio=200)
INFO = EngineInfo(
    name="m", path="/m", backend="vision", model_type="qwen3_vl", width=8, context_tokens=1000, weight_bytes=1,
    dtype="float32", device="cpu", blas="openblas", threads=2, load_s=1.5, versions={"mlx": "1", "mlx-vlm": "2"},
    image_spec=SPEC,
)  # fmt: skip
PICTURE = Picture(offset=4096, width=64, height=32)
START = Start(
    seq=7,
    parts=(Text(text="Describe.\nFrame (timestamp: 1s):"), PICTURE),
    max_tokens=128,
    constraint=RecordConstraint(),
)
DIGESTS = {4096: b"a" * 16}


def digest(start: Start = START, digests: dict[int, bytes] | None = None, **info: Any) -> bytes:
    return request_digest(start, DIGESTS if digests is None else digests, msgspec.structs.replace(INFO, **info))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parts", (Text(text="Describe!\nFrame (timestamp: 1s):"), PICTURE)),
        ("parts", (Text(text="Describe.\nFrame (timestamp: 2s):"), PICTURE)),
        ("parts", (Text(text="Describe.\nFrame (timestamp: 1s):"), PICTURE, PICTURE)),
        ("parts", (PICTURE, Text(text="Describe.\nFrame (timestamp: 1s):"))),
        ("parts", (Text(text="Describe.\nFrame (timestamp: 1s):"), Picture(offset=4096, width=32, height=64))),
        ("max_tokens", 129),
        ("constraint", None),
        ("constraint", RecordConstraint(frame_count=2, labelled=True)),
        ("constraint", SchemaConstraint(schema='{"type":"object"}')),
        ("sampling", Sampling(temperature=0.5)),
        ("sampling", Sampling(top_p=0.5)),
        ("sampling", Sampling(top_k=5)),
        ("sampling", Sampling(repetition_penalty=1.1)),
        ("sampling", Sampling(seed=1)),
        ("stop", ("x",)),
        ("thinking", True),
        ("history", (Turn(role="system", parts=(Text(text="Be brief."),)),)),
    ],
)
def test_each_part_of_the_question_counts(field: str, value: Any) -> None:
    assert digest(msgspec.structs.replace(START, **{field: value})) != digest()


def test_every_field_of_a_question_is_in_the_list_above() -> None:
    # Whoever adds one sees that it is part of the key by itself, and says so there.
    assert set(Start.__struct_fields__) == {
        "seq", "parts", "max_tokens", "history", "constraint", "sampling", "stop", "stream", "thinking",
        "front",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "fake"),
        ("dtype", "bfloat16"),
        ("context_tokens", 999),
        ("versions", {"mlx": "1", "mlx-vlm": "3"}),
        *[("image_spec", msgspec.structs.replace(SPEC, **{name: 3})) for name in ImageSpec.__struct_fields__],
        ("image_spec", None),
    ],
)
def test_what_the_engine_is_counts(field: str, value: Any) -> None:
    assert digest(**{field: value}) != digest()


def test_the_picture_counts_and_its_place_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest(digests={4096: b"b" * 16}) != digest()
    moved = msgspec.structs.replace(
        START, seq=8, front=True, parts=(START.parts[0], msgspec.structs.replace(PICTURE, offset=8192))
    )
    assert digest(moved, digests={8192: b"a" * 16}) == digest()
    assert digest(name="other", path="/other", width=1, threads=9, load_s=9.0) == digest()
    before = digest()
    monkeypatch.setattr(identity, "__version__", "99")
    assert digest() != before


# --- the model's files ---------------------------------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    folder.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ):
        (folder / name).write_text(f"content of {name}")
    return folder


def key_of(folder: Path, store: StoreFile, model: ModelIdentity | None = None) -> bytes | None:
    return (model or of(folder)).key(b"request", store)


def of(folder: Path) -> ModelIdentity:
    return ModelIdentity(ConfigureEngine(backend="vision", name="any", path=str(folder)))


@pytest.fixture
def store(tmp_path: Path) -> StoreFile:
    return StoreFile(tmp_path / "results.db", DEFAULT_BOUNDS)


def test_the_same_files_elsewhere_are_the_same_model(tmp_path: Path, store: StoreFile) -> None:
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other")
    (other / "README.md").write_text("about it")
    assert key_of(one, store) == key_of(other, store) is not None


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_each_file_counts(tmp_path: Path, store: StoreFile, name: str) -> None:
    folder = make_model(tmp_path / "one")
    before = key_of(folder, store)
    (folder / name).write_text(f"Content of {name}")
    assert key_of(folder, store) != before
    (folder / name).rename(folder / f"other-{name}")
    assert key_of(folder, store) != before


def test_content_is_hashed_once(tmp_path: Path, store: StoreFile, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "one")
    before = key_of(folder, store)
    hashed: list[str] = []

    def counted(stamp: FileStamp) -> bytes:
        hashed.append(stamp.name)
        return hash_file(stamp)

    monkeypatch.setattr(identity, "hash_file", counted)
    assert key_of(folder, store) == before
    assert hashed == []
    os.utime(folder / "config.json", ns=(1, 1))
    assert key_of(folder, store) == before
    assert hashed == ["config.json"]


def test_a_configuration_edited_in_the_hugging_face_cache_counts(tmp_path: Path, store: StoreFile) -> None:
    blob = tmp_path / "blobs" / ("ab" * 20)
    folder = tmp_path / "snapshots" / "abc"
    blob.parent.mkdir()
    folder.mkdir(parents=True)
    blob.write_text("{}")
    (folder / "preprocessor_config.json").symlink_to(blob)
    before = key_of(folder, store)
    assert before == key_of(folder, store) is not None
    (folder / "preprocessor_config.json").write_text('{"do_resize": false}')
    assert key_of(folder, store) != before


def test_large_blobs_of_the_hugging_face_cache_are_not_read(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    folder = tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    (blobs / ("ab" * 32)).write_bytes(b"weights")
    (folder / "model.safetensors").symlink_to(blobs / ("ab" * 32))

    def refuse(stamp: FileStamp) -> bytes:
        raise AssertionError(stamp)

    one = fingerprint(stamps(folder), refuse)
    (blobs / ("cd" * 32)).write_bytes(b"weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blobs / ("cd" * 32))
    assert fingerprint(stamps(folder), refuse) != one


def test_nothing_is_kept_of_a_folder_that_changed_after_loading(tmp_path: Path, store: StoreFile) -> None:
    folder = make_model(tmp_path / "one")
    model = of(folder)
    (folder / "model.safetensors").write_text("other weights")
    assert key_of(folder, store, model) is None
    assert key_of(folder, store) is not None
    [stamp] = [stamp for stamp in stamps(folder) if stamp.name == "config.json"]
    with pytest.raises(ModelChanged):
        hash_file(FileStamp(name=stamp.name, path=stamp.path, size=stamp.size, mtime_ns=1, inode=stamp.inode))


def test_a_folder_that_cannot_be_read_has_no_results(tmp_path: Path, store: StoreFile) -> None:
    assert key_of(tmp_path / "missing", store) is None


def test_the_fakes_answers_depend_on_its_answers_options_alone(store: StoreFile) -> None:
    def key(options: str) -> bytes | None:
        return ModelIdentity(ConfigureEngine(backend="fake", name="fake", path=options)).key(b"request", store)

    assert key("tokens=5,step_ms=3,fault=crash,fault_step=9") == key("load_s=2,tokens=5") != key("tokens=6")
