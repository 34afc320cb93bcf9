"""What a listener may do differently on connections that never said `hello`, sans IO.

ADR-006's adapter, as shipped, throws away whatever else stands on the line with ``done``; its bridge sent the last
batch first and ``{"id": N, "done": true}`` alone after it. A listener for that adapter has a dialect of its own. After
`hello` a connection speaks vlmd's own form on every listener.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from vlmd_protocol.limits import DEFAULT_BATCH_SIZE, DEFAULT_MAX_TOKENS
from vlmd_protocol.messages import BatchLine, DescribeParams, DoneLine, Mode, Request, Wire

# What `hello` calls a listener's separate line with `done`.
SEPARATE_DONE: Final = "adr006.separate_done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """Form of the lines, and values for what a `describe_images` leaves out.

    Attributes:
        separate_done: the last batch comes as an ordinary line, and ``done`` on a line of its own.
        batch_size: where `batchSize` is left out.
        max_tokens: where `maxTokens` is left out.
        mode: where `mode` is left out.
    """

    separate_done: bool = False
    batch_size: int = DEFAULT_BATCH_SIZE
    max_tokens: int = DEFAULT_MAX_TOKENS
    mode: Mode = "parallel"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What `hello` tells of it, so that a daemon's listener can be told from another's."""
        return (SEPARATE_DONE,) if self.separate_done else ()

    def complete(self, request: Request, params: Wire) -> Wire:
        """Return `params` with this listener's values where `request` gives none."""
        if not isinstance(params, DescribeParams) or self == PLAIN:
            return params
        given = msgspec.json.decode(request.params, type=_Given)
        defaults = {"batch_size": self.batch_size, "max_tokens": self.max_tokens, "mode": self.mode}
        left_out = {name: value for name, value in defaults.items() if getattr(given, name) is msgspec.UNSET}
        return msgspec.structs.replace(params, **left_out)

    def lines(self, line: Wire) -> tuple[Wire, ...]:
        """Return what stands for `line` on the wire."""
        if self.separate_done and isinstance(line, BatchLine) and line.done is True:
            return msgspec.structs.replace(line, done=msgspec.UNSET), DoneLine(id=line.id)
        return (line,)


class _Given(Wire, frozen=True, kw_only=True, rename="camel"):
    """Which of the optional fields a request has; `DescribeParams` has checked their values."""

    batch_size: Any = msgspec.UNSET
    max_tokens: Any = msgspec.UNSET
    mode: Any = msgspec.UNSET


PLAIN: Final = Dialect()

# What ADR-006's adapter, as shipped, needs.
ADR: Final = Dialect(separate_done=True)
