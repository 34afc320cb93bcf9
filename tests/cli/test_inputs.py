"""Which pictures, in which order, with which timestamps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from vlmd_bridge.cli.inputs import InputError, collect, natural_key, timestamps

NOTHING = io.StringIO("")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def test_folder_stands_for_its_pictures_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "f10.png", "f2.PNG", "f1.jpg", "notes.txt", ".hidden.png", "f3.webp")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "inner.png").write_bytes(b"")
    found = [Path(path).name for path in collect([str(tmp_path)], NOTHING)]
    assert found == ["f1.jpg", "f2.PNG", "f3.webp", "f10.png"]


def test_order_of_arguments_is_kept_and_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert collect(["b.png", "a.png", "b.png"], NOTHING) == [
        str(tmp_path / "b.png"),
        str(tmp_path / "a.png"),
        str(tmp_path / "b.png"),
    ]


def test_dash_reads_paths_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = collect(["x.png", "-"], io.StringIO("/a b.png\n\n/c.png "))
    assert found == [str(tmp_path / "x.png"), "/a b.png", "/c.png "]
    with pytest.raises(InputError, match="once"):
        collect(["-", "-"], NOTHING)


def test_nothing_to_do_is_an_error_that_says_what_is_searched_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png"):
        collect([str(tmp_path)], NOTHING)
    with pytest.raises(InputError):
        collect(["-"], NOTHING)


def test_natural_key_sorts_names_with_and_without_numbers() -> None:
    names = ["10", "9a", "a10", "a9", "", "B", "b2", "٣"]
    assert sorted(names, key=natural_key) == sorted(sorted(names, reverse=True), key=natural_key)
    assert sorted(["a10", "a9", "A1"], key=natural_key) == ["A1", "a9", "a10"]


def test_timestamps_from_a_rate() -> None:
    assert timestamps(4, fps=10, file=None) == [0.0, 0.1, 0.2, 0.3]
    assert timestamps(2, fps=None, file=None) == [None, None]
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--fps"):
            timestamps(1, fps=fps, file=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\n2\n", "2 timestamps for 3"), ("1\nx\n3\n", "timestamp 2: 'x'"), ("1\nnan\n3\n", "timestamp 2")],
)
def test_bad_timestamps_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "times"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        timestamps(3, fps=None, file=str(file))


def test_timestamps_file(tmp_path: Path) -> None:
    file = tmp_path / "times"
    file.write_text("0\n1.5\r\n\n2e1")
    assert timestamps(3, fps=None, file=str(file)) == [0, 1.5, 20]
    with pytest.raises(InputError, match="cannot be read"):
        timestamps(3, fps=None, file=str(tmp_path / "absent"))
