"""Names of models in the hub's cache: revisions, the complete ones among them, and what the errors tell to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.models.test_probe import make_model
from vlmd_bridge.models.errors import ModelError
from vlmd_bridge.models.names import find_model, resolve_model

MAIN = "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334"
OLD = "a1ffee0000000000000000000000000000000000"
PULL = "0123456789abcdef0123456789abcdef01234567"


class Cache:
    """A hub cache with one repository, ``org/some-model``."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"HF_HUB_CACHE": str(folder)}
        self.repository = folder / "models--org--some-model"

    def add(self, commit: str, *refs: str, age_s: float = 0.0) -> Path:
        folder = make_model(self.repository / "snapshots" / commit)
        for ref in refs:
            path = self.repository / "refs" / ref
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
        os.utime(folder, (1e9 - age_s, 1e9 - age_s))
        return folder

    def path(self, name: str) -> str:
        return resolve_model(name, self.environ).path

    def error(self, name: str) -> tuple[str, str]:
        with pytest.raises(ModelError) as caught:
            resolve_model(name, self.environ)
        return caught.value.code, str(caught.value)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_a_model_that_is_not_there_names_the_command_that_fetches_it(cache: Cache) -> None:
    code, message = cache.error("org/some-model")
    assert code == "model_not_found"
    assert message.endswith("fetch it with: hf download org/some-model")
    assert cache.environ["HF_HUB_CACHE"] in message
    code, message = cache.error("org/some-model@v2")
    assert code == "model_not_found"
    assert message.endswith("fetch it with: hf download org/some-model --revision v2")


def test_without_a_revision_main_counts_whatever_is_newer(cache: Cache) -> None:
    only = cache.add(OLD)
    assert find_model("org/some-model", cache.environ) == only  # the only one, without a ref
    main = cache.add(MAIN, "main", age_s=100)
    assert cache.path("org/some-model") == str(main)


def test_a_revision_is_a_branch_a_tag_or_the_start_of_a_commit(cache: Cache) -> None:
    main = cache.add(MAIN, "main")
    old = cache.add(OLD, "v1.0")
    pull = cache.add(PULL, "refs/pr/7")
    for revision, folder in (
        ("main", main),
        ("v1.0", old),
        ("refs/pr/7", pull),
        (PULL, pull),
        ("0123456", pull),
        ("a1b", main),
    ):
        resolved = resolve_model(f"org/some-model@{revision}", cache.environ)
        assert resolved.path == str(folder), revision
        assert resolved.name == f"org/some-model@{revision}"
    code, message = cache.error("org/some-model@a1")
    assert code == "model_not_found"
    assert MAIN in message and OLD in message and "more digits" in message
    code, message = cache.error("org/some-model@v2")
    assert code == "model_not_found"
    assert f"of org/some-model there is {MAIN[:7]}" in message


def test_any_complete_revision_will_do_where_none_is_named(cache: Cache) -> None:
    (cache.add(MAIN, "main") / "model.safetensors").unlink()
    cache.add(OLD, age_s=100)
    newer = cache.add(PULL, age_s=50)
    assert cache.path("org/some-model") == str(newer)
    assert cache.error("org/some-model@main")[0] == "model_incomplete"


def test_incomplete_ones_are_named_with_the_command(cache: Cache) -> None:
    (cache.add(MAIN, "main") / "model.safetensors").unlink()
    (cache.add(OLD, "v1") / "config.json").unlink()  # a download that broke off at once
    code, message = cache.error("org/some-model")
    assert code == "model_incomplete"
    assert f"revision {MAIN[:7]}" in message and f"revision {OLD[:7]}" in message
    assert message.endswith("(hf download org/some-model)")
    code, message = cache.error("org/some-model@v1")
    assert code == "model_incomplete"
    assert message.endswith("(hf download org/some-model --revision v1)")


def test_what_else_is_wrong_with_main_is_not_passed_over(cache: Cache) -> None:
    (cache.add(MAIN, "main") / "modeling_x.py").write_text("import os")
    cache.add(OLD)
    assert cache.error("org/some-model")[0] == "model_needs_code"


def test_a_ref_without_its_snapshot(cache: Cache) -> None:
    ref = cache.repository / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(MAIN)
    assert cache.error("org/some-model")[0] == "model_not_found"
    assert cache.error("org/some-model@main")[0] == "model_not_found"


def test_a_folder_of_that_name_wins(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.add(MAIN, "main")
    monkeypatch.chdir(tmp_path)
    here = make_model(tmp_path / "org" / "some-model")
    assert cache.path("org/some-model") == str(here)
