"""Which pictures `vlmd describe` was asked for, in which order, and when each was taken; and schemas from files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from vlmd_protocol.limits import MAX_SCHEMA_BYTES

# What a folder is searched for; a file that is named itself is taken whatever its name.
PICTURE_SUFFIXES: Final = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_NUMBER: Final = re.compile(r"(\d+)")


class InputError(Exception):
    """The command line names no usable input; the message says what to do."""


def collect(paths: Sequence[str], stdin: TextIO) -> list[str]:
    """Return the absolute paths of the pictures to describe, in the order given.

    A folder stands for its pictures in natural order, ``-`` for the paths on standard input, one a line. A file that
    is not there is kept: it fails with its own error, the others are described.

    Raises:
        InputError: there is none, or ``-`` is given twice.
    """
    if paths.count("-") > 1:
        raise InputError("`-` (paths from standard input) can be given once.")
    found: list[str] = []
    for path in paths:
        if path == "-":
            found += [os.path.abspath(line) for line in _lines(stdin)]  # noqa: PTH100 - resolve() follows symlinks
        elif Path(path).is_dir():
            found += _pictures(Path(path))
        else:
            found.append(os.path.abspath(path))  # noqa: PTH100
    if not found:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"No pictures in {' '.join(paths)}. A folder is searched for {kinds}, not its subfolders.")
    return found


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts frame-2 before frame-10."""
    return [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in _NUMBER.split(name)]


def timestamps(count: int, *, fps: float | None, file: str | None) -> list[float] | list[None]:
    """Return a timestamp in seconds for each of `count` pictures: from a rate, from a file with one a line, or none.

    Raises:
        InputError: the rate is not positive, or the file has another number of lines or a line that is no number.
    """
    if fps is not None:
        if not (fps > 0 and math.isfinite(fps)):
            raise InputError(f"--fps must be a positive number, not {fps:g}.")
        # Milliseconds: 0.30000000000000004 would stand in prompts and results.
        return [round(position / fps, 3) for position in range(count)]
    if file is None:
        return [None] * count
    found = list(_read_timestamps(Path(file)))
    if len(found) != count:
        raise InputError(f"{file} has {len(found)} timestamps for {count} pictures; one a line is needed, in order.")
    return found


def read_schema(file: Path) -> dict[str, Any]:
    """Return the JSON Schema in `file`.

    Raises:
        InputError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        data = file.read_bytes()
        schema = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The schema {file} cannot be read: {error}.") from None
    if len(data) > MAX_SCHEMA_BYTES:
        raise InputError(f"The schema {file} has {len(data)} bytes; at most {MAX_SCHEMA_BYTES} are allowed.")
    if not isinstance(schema, dict):
        raise InputError(f"The schema {file} is no JSON object.")
    return schema


def _read_timestamps(file: Path) -> Iterator[float]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The timestamps in {file} cannot be read: {error}.") from None
    for number, line in enumerate(_lines(text.splitlines()), 1):
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{file}, timestamp {number}: {line[:40]!r} is no number of seconds.")
        yield value


def _pictures(folder: Path) -> list[str]:
    try:
        names = sorted(os.listdir(folder), key=natural_key)  # noqa: PTH208 - names are what is sorted
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    base = os.path.abspath(folder)  # noqa: PTH100
    found = [
        os.path.join(base, name)  # noqa: PTH118 - text in, text out
        for name in names
        if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")
    ]
    return [path for path in found if not Path(path).is_dir()]


def _lines(source: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are not empty, without their line feed; blanks may belong to a file's name."""
    for line in source:
        if text := line.rstrip("\r\n"):
            yield text
