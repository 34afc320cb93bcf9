"""What was measured."""

from __future__ import annotations

import msgspec


class Optimisation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An optimisation: how many times as fast the engine is with it, the median of turns and its bounds."""

    name: str
    gain: float
    low: float
    high: float
    turns: int


class Figures(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One machine, one model.

    Attributes:
        frames: of one turn, each described once.
        frames_per_s: the median of the turns, loading left out.
        first_result_s: from the request to the first frame of it.
        tokens_per_s: written by all rows together.
        record_tokens: of a record, on average.
        prompt_tokens: of one frame's prompt, image and all.
        image_tokens: of these, the image's.
        load_s: from the daemon's start until the model answers.
        memory_bytes: resident memory by process.
        machine_memory_bytes: the machine's.
        engine_busy: processor time of the engine over its threads and the wall time.
        images_busy: the same of the busiest image process.
        image_processes: how many open pictures.
        cores: of the machine.
        load: how many processes wanted to run in the last minute, this command's own among them.
        width: frames that are decoded together.
        blas, device, dtype, threads: as `vlmd status` has them.
        optimisations: what each buys.
    """

    model: str
    frames: int
    frames_per_s: float
    first_result_s: float
    tokens_per_s: float
    record_tokens: float
    prompt_tokens: int
    image_tokens: int
    load_s: float
    memory_bytes: dict[str, int]
    machine_memory_bytes: int
    engine_busy: float
    images_busy: float
    image_processes: int
    cores: int
    load: float
    width: int
    blas: str
    device: str
    dtype: str
    threads: int
    optimisations: list[Optimisation]
