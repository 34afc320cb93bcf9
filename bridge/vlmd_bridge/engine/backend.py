"""The seam between the worker process and what runs a model."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vlmd_bridge.workers.messages import (
    ConfigureEngine,
    Count,
    Counted,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    Start,
)

Event: TypeAlias = Delta | Finished | Failed

# Tells the daemon a stage of loading and the fraction of the whole that is done, 0 to 1.
ReportLoading: TypeAlias = Callable[[str, float], None]


class LoadError(Exception):
    """A model cannot be loaded. `code` is one of the request codes of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SequenceError(Exception):
    """One sequence cannot run; the others go on. `code` is one of the frame codes of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a backend did since it was loaded, and the memory it holds now."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    active_memory_bytes: int = 0
    cache_memory_bytes: int = 0


class Backend(Protocol):
    """A loaded model. Every call comes from the one thread that loaded it."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        ...

    def start(self, start: Start) -> None:
        """Queue a sequence. What is wrong with it comes back from `step` as `Failed`.

        Any exception means that it was not queued: the caller fails it alone.
        """
        ...

    def step(self) -> Sequence[Event]:
        """Do one row's prefill and/or one decode step; return the text that came and the sequences that ended.

        Any exception means that the state of what has begun is unknown: the caller calls `reset` and fails that.
        """
        ...

    def count(self, count: Count) -> Counted | Failed:
        """Tell the tokens of a prompt, its pictures' among them; their pixels are not read and nothing is inferred."""
        ...

    def remove(self, seq: int) -> None:
        """Drop `seq`, waiting or running; when this returns its pictures are no longer read."""
        ...

    def usage(self) -> Usage:
        """Return the counters of the heartbeat."""
        ...

    def idle(self) -> None:
        """Give back what is only needed while sequences run (the wired limit on Metal)."""
        ...

    def reset(self) -> set[int]:
        """Drop every sequence that has begun and build the running state anew; return those that wait, and still do.

        The weights stay.
        """
        ...

    def close(self) -> None:
        """Release the model. Nothing is called afterwards."""
        ...


def open_backend(configure: ConfigureEngine, arena: mmap.mmap, report: ReportLoading) -> Backend:
    """Load the backend that `configure` names; `arena` holds the pictures of its sequences.

    Raises:
        LoadError: the model cannot be loaded.
    """
    # Imported here: the fake starts without the model stack, and a platform is set up before MLX is imported.
    if configure.backend == "fake":
        from vlmd_bridge.engine.fake.backend import FakeBackend

        return FakeBackend.load(configure, arena, report)
    from vlmd_bridge.engine.platform import choose_blas, forbid_downloads

    report("importing", 0.0)
    forbid_downloads()
    blas = choose_blas(configure.threads)
    if configure.backend == "vision":
        from vlmd_bridge.engine.vision import VisionBackend

        return VisionBackend.load(configure, arena, report, blas)
    from vlmd_bridge.engine.text import TextBackend

    return TextBackend.load(configure, report, blas)
