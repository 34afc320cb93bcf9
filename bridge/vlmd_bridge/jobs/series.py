"""What a `describe_images` leaves for the next one of its series: the parts of one recording, on one connection.

A part that has ended leaves what it knows of duplicates; the next that begins takes it. What is not there is inferred
once more, so that everything here may be forgotten at any time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from vlmd_bridge.jobs.dedupe import Dedupe
from vlmd_bridge.jobs.work import Frame
from vlmd_bridge.workers.image_messages import Luma
from vlmd_protocol.messages import DescribeParams

# A picture's luminance has up to 8 MiB, and the texts beside it some: all series together stay under 256 MiB.
MAX_LEFT: Final = 16

# A recording of one picture each minute, four in a request, goes on. What somebody's screen showed is kept no longer.
KEPT_S: Final = 600.0

# Of one connection, model and question.
Key: TypeAlias = tuple[Hashable, str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """What a part leaves: its duplicates, and the reference with its luminance in the arena, if it has one."""

    dedupe: Dedupe
    luma: tuple[Frame, Luma] | None


class AllSeries:
    """Every series of the daemon; the least recent are forgotten when there are too many."""

    def __init__(self, give_back: Callable[[Luma], None], now_s: Callable[[], float]) -> None:
        self._give_back = give_back
        self._now_s = now_s
        self._left: OrderedDict[Key, tuple[float, Legacy]] = OrderedDict()

    def of(self, client: Hashable, model: str, params: DescribeParams) -> Series | None:
        """Return the series of a request, None where it names none or its frames are not compared at all.

        Requests of another model or question are of another series, whatever they call it.
        """
        if params.series is None or params.mode != "parallel" or params.dedupe is False:
            return None
        question = msgspec.json.encode(msgspec.structs.replace(params, images=[]))
        return Series(self, (client, model, hashlib.sha256(question).digest()))

    def take(self, key: Key) -> Legacy | None:
        """Return what the last part left; it is the caller's now."""
        left = self._left.pop(key, None)
        return None if left is None else left[1]

    def leave(self, key: Key, legacy: Legacy) -> None:
        """Keep what a part leaves, in place of what is there."""
        self._forget(key)
        self._left[key] = self._now_s() + KEPT_S, legacy
        while len(self._left) > MAX_LEFT:
            self._forget(next(iter(self._left)))

    def forget_client(self, client: Hashable) -> None:
        """Forget the series of a connection that is gone."""
        for key in [key for key in self._left if key[0] == client]:
            self._forget(key)

    def forget_old(self) -> None:
        """Forget what no request has taken in time."""
        for key in [key for key, (until_s, _) in self._left.items() if until_s <= self._now_s()]:
            self._forget(key)

    def relieve(self) -> bool:
        """Free a range of the arena, which is full; False when there is none to free."""
        key = next((key for key, (_, legacy) in self._left.items() if legacy.luma is not None), None)
        if key is not None:
            self._forget(key)
        return key is not None

    def _forget(self, key: Key) -> None:
        legacy = self.take(key)
        if legacy is not None and legacy.luma is not None:
            self._give_back(legacy.luma[1])


@dataclass(frozen=True, slots=True)
class Series:
    """The series of one request."""

    everything: AllSeries
    key: Key

    def take(self) -> Legacy | None:
        """See `AllSeries.take`."""
        return self.everything.take(self.key)

    def leave(self, legacy: Legacy) -> None:
        """See `AllSeries.leave`."""
        self.everything.leave(self.key, legacy)
