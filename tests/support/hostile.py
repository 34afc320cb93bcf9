"""Hostile lines: the vectors, mutated, and what no vector thought of. Each says which ids its answers must carry."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, NoReturn

from vlmd_protocol.limits import MAX_ID_CHARS, MAX_SAFE_INTEGER
from vlmd_protocol.vectors import load, to_bytes

_BAD_UTF8 = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x28\xa1", b"\x80", b"\xfe\xfe")
_ODD_UTF8 = ("\u2028", "\u2029", "\x85", "\ufeff", "\0", "\x0b", "👩‍💻", "e\u0301")

# Far on either side of where a parser gives up, some 1,000 levels, so that nothing here hangs on its exact limit.
_DEPTHS = (2, 60, 60, 60, 3_000, 3_000, 20_000)

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**53, -(2**64), 10**400, "", "x", "x" * 5_000, "\x00", [], {}, [[]],
    {"": ""}, ["ping"] * 50,
)  # fmt: skip
_IDS: tuple[Any, ...] = (
    None, True, 1.5, [], {}, 2**53, -(2**53), 10**400, "x" * (MAX_ID_CHARS + 1), "x" * 10_000, "", "é", 2**53 - 1,
)  # fmt: skip

# A lone surrogate or a number beyond all bounds makes a line no JSON, but only where a daemon has reason to look at it.
_DOUBTFUL = re.compile(rb"\\u[dD][89a-fA-F]|[eE]\+?\d{3}")

# A line with this word is left out: it would do what it says.
_SHUTDOWN = b"shutdown"


class HostileLines:
    """An endless supply, the same for the same seed. Ids of whole requests are above `first_id`."""

    def __init__(self, seed: int, *, first_id: int = 0) -> None:
        self._rng = random.Random(seed)
        self._id = first_id
        self._seeds = _seeds()
        self._requests = [value for line in self._seeds if isinstance(value := _json(line), dict)]
        self._makers: tuple[Callable[[], bytes], ...] = (
            self._whole, self._flipped, self._cut, self._spliced, self._noise, self._bad_utf8, self._odd_utf8,
            self._deep, self._odd_id, self._odd_value, self._odd_value, self._odd_value, self._two_in_one,
            self._repeated,
        )  # fmt: skip

    def line(self) -> bytes:
        """Return the next one, with its line feed; a mutation may have put others inside it."""
        while True:
            line = self._rng.choice(self._makers)()
            if _SHUTDOWN not in line:
                return line + b"\n"

    def _whole(self) -> bytes:
        """A request as it should be, among all that is not."""
        self._id += 1
        method = self._rng.choice(("ping", "status", "ping", "nothing"))
        return json.dumps({"id": self._id, "method": method}).encode()

    def _flipped(self) -> bytes:
        data = bytearray(self._seed())
        for _ in range(self._rng.randint(1, 4)):
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)
        return bytes(data)

    def _cut(self) -> bytes:
        line = self._seed()
        start, end = sorted(self._rng.choices(range(len(line) + 1), k=2))
        return line[:start] + line[end:] if self._rng.random() < 0.5 else line[:start]

    def _spliced(self) -> bytes:
        one, other = self._seed(), self._seed()
        return one[: self._rng.randrange(len(one) + 1)] + other[self._rng.randrange(len(other) + 1) :]

    def _noise(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((1, 3, 20, 200, 3_000)))

    def _bad_utf8(self) -> bytes:
        return self._inserted(self._rng.choice(_BAD_UTF8))

    def _odd_utf8(self) -> bytes:
        return self._inserted(self._rng.choice(_ODD_UTF8).encode())

    def _deep(self) -> bytes:
        depth = self._rng.choice(_DEPTHS)
        opening, closing = self._rng.choice((("[", "]"), ('{"a":', "}")))
        body = opening * depth + "0" + (closing * depth if self._rng.random() < 0.7 else "")
        if self._rng.random() < 0.3:
            return body.encode()
        self._id += 1
        return f'{{"id":{self._id},"method":"ping","params":{body}}}'.encode()

    def _odd_id(self) -> bytes:
        return _dumps({**self._request(), "id": self._rng.choice(_IDS)})

    def _odd_value(self) -> bytes:
        """A request with something else at one place within it."""
        request = json.loads(json.dumps(self._request()))
        self._id += 1
        request["id"] = self._id
        places: list[tuple[Any, Any]] = [(request, key) for key in request if key != "id"]
        for holder, key in places:
            value = holder[key]
            inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            places += [(value, inner) for inner in list(inside)[:8]]
        holder, key = self._rng.choice(places) if places else (request, "method")
        holder[key] = self._rng.choice(_VALUES)
        return _dumps(request)

    def _two_in_one(self) -> bytes:
        return self._rng.choice((b"", b" ", b",", b"\r", b"\0")).join((self._seed(), self._seed()))

    def _repeated(self) -> bytes:
        line = self._seed()
        start, end = sorted(self._rng.choices(range(len(line) + 1), k=2))
        return line[:start] + line[start:end] * self._rng.choice((2, 3, 50)) + line[end:]

    def _inserted(self, piece: bytes) -> bytes:
        line = self._seed()
        at = self._rng.randrange(len(line) + 1)
        return line[:at] + piece + line[at:]

    def _seed(self) -> bytes:
        return self._rng.choice(self._seeds)

    def _request(self) -> dict[str, Any]:
        return self._rng.choice(self._requests)


def lines_of(data: bytes) -> list[bytes]:
    """Return the lines of `data` that are to be answered, what stands after the last line feed included."""
    return [line for line in data.split(b"\n") if line and not line.isspace()]


def id_of(line: bytes) -> int | str | None:
    """Return the id that the answer to `line` must carry, read with the standard library alone; None for no id."""
    value = _json(line)
    if not isinstance(value, dict):
        return None
    found = value.get("id")
    if isinstance(found, bool):
        return None
    if isinstance(found, int):
        return found if abs(found) <= MAX_SAFE_INTEGER else None
    return found if isinstance(found, str) and len(found) <= MAX_ID_CHARS else None


def is_doubtful(line: bytes) -> bool:
    """Whether the answer to `line` may also carry no id."""
    return _DOUBTFUL.search(line) is not None


def _seeds() -> list[bytes]:
    lines = [to_bytes(case["line"]) for name in ("decode/requests", "invalid/requests", "invalid/params")
             for case in load(name)]  # fmt: skip
    lines += [_dumps(case["line"]) for case in load("encode/requests")]
    # The longest would make every mutation slow.
    return sorted({line for line in lines if 0 < len(line) < 4_000 and _SHUTDOWN not in line})


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> NoReturn:
    # NaN and Infinity are the standard library's own idea.
    raise ValueError(name)


def _dumps(value: object) -> bytes:
    return json.dumps(value).encode()
