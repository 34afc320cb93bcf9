"""What the fake backend can be asked to do."""

from __future__ import annotations

import msgspec


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the fake does.

    An answer takes about `tokens` tokens a frame, a little more or less by its content, so that rows end at different
    steps. A `broken` one fails its load. What else can go wrong is for fault points (`vlmd_bridge.faults`).
    """

    load_s: float = 0.0
    step_ms: float = 0.0
    width: int = 8
    tokens: int = 24
    factor: int = 32
    min_pixels: int = 4096
    max_pixels: int = 262144
    context: int = 32768
    broken: bool = False


def parse_fake_options(text: str) -> FakeOptions:
    """Return the options in `text`: ``name=value`` joined by commas.

    Raises:
        ValueError: an option is unknown or its value is not of its type.
    """
    values = {}
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        if not equals or name not in FakeOptions.__struct_fields__:
            known = ", ".join(FakeOptions.__struct_fields__)
            raise ValueError(f"{pair!r} is no option of the fake backend; it knows {known} (name=value)")
        values[name] = value
    return msgspec.convert(values, FakeOptions, strict=False)
