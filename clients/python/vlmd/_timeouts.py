"""How long each thing may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Deadlines, in seconds; None means none.

    Attributes:
        connect_s: to connect, and for `hello`, `ping`, `status` and `shutdown`, which a daemon answers at once.
        start_s: from spawning a daemon until it is bound; starts again when it reports progress.
        first_byte_s: from asking until a job's first batch, text or count; starts again while a model loads.
        between_batches_s: from one batch of a job to the next; the time between two calls of the iterator is not
            counted, nor that which the caller's iterable takes for frames.
        between_deltas_s: from one piece of a generated text to the next, counted the same way.
        total_s: for a whole job, the caller's own time and that of a daemon's start included.
    """

    connect_s: float = 5.0
    start_s: float = 30.0
    first_byte_s: float | None = 120.0
    between_batches_s: float | None = 300.0
    between_deltas_s: float | None = 120.0
    total_s: float | None = None
