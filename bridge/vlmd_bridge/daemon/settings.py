"""What `vlmd serve` was asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlmd_bridge.paths import store_file
from vlmd_bridge.store.bounds import DEFAULT_BOUNDS, Bounds
from vlmd_protocol.dialect import ADR, PLAIN, Dialect


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonSettings:
    """Everything the daemon needs to know, resolved from flags, environment and file.

    Attributes:
        model: name or path of the model.
        text_model: name or path of a second model, for text alone.
        max_image_pixels: area beyond which a picture is shrunk although the model would take it; 0 for no such limit.
        socket_path: where to listen.
        adr_socket_path: where to listen in `adr_dialect` as well; the same path for that alone.
        adr_dialect: the form of the lines there.
        owned: end when standard input reaches EOF or the parent dies.
        owner_pid: the parent, where it was looked up earlier than this daemon begins.
        ready_fd: descriptor for start-up lines, NDJSON: ``loading`` and ``bound``, then ``ready``, ``running`` or
            ``fatal``.
        idle_timeout_s: end after so long with no connection and no job; None for never.
        drain_timeout_s: how long running work may take to finish after SIGTERM or `shutdown`.
        log_file: the rotating log, None for none.
        verbose: log at debug level.
        batch_width: sequences decoded together, 0 for the engine's own choice.
        threads: BLAS threads of the engine, 0 for its own choice.
        switched_off: optimisations that the engine does without (`engine.switches`).
        hang_timeout_s: how long an engine with work may show no progress; ten times as long while it computes.
        crash_window_s: an engine that crashed five times within so long, the time of loads not counted, and finished
            nothing between, rests as long.
        image_processes: how many decode pictures, 0 for as many as the cores allow.
        image_timeout_s: how long one picture may take before its process is replaced.
        max_source_pixels: largest picture that is decoded.
        max_source_bytes: largest picture file that is read.
        image_memory_bytes: memory limit of an image process.
        faults: fault points to arm (`vlmd_bridge.faults`), none where empty.
        cache: whether jobs use the result store that say nothing about it.
        store_path: of the result store, opened when a job first needs it.
        store_bounds: how much it keeps.
        fingerprint: digest of the configuration, which tells a client whether a shared daemon is the one it wants.
    """

    model: str
    socket_path: Path
    text_model: str | None = None
    # 2,048 tokens of a Qwen-VL; the published bound of 16 megapixels would be 16,384 for one frame.
    max_image_pixels: int = 2048 * 32 * 32
    adr_socket_path: Path | None = None
    adr_dialect: Dialect = ADR
    owned: bool = False
    owner_pid: int | None = None
    ready_fd: int | None = None
    idle_timeout_s: float | None = None
    drain_timeout_s: float = 10.0
    log_file: Path | None = None
    verbose: bool = False
    batch_width: int = 0
    threads: int = 0
    switched_off: tuple[str, ...] = ()
    hang_timeout_s: float = 120.0
    crash_window_s: float = 180.0
    image_processes: int = 0
    image_timeout_s: float = 20.0
    max_source_pixels: int = 100_000_000
    max_source_bytes: int = 256 * 1024 * 1024
    image_memory_bytes: int = 2 * 1024 * 1024 * 1024
    faults: str = ""
    cache: bool = False
    store_path: Path = field(default_factory=store_file)
    store_bounds: Bounds = DEFAULT_BOUNDS
    fingerprint: str = ""

    @property
    def dialects(self) -> dict[Path, Dialect]:
        """The dialect of each path to listen at."""
        adr = {} if self.adr_socket_path is None else {self.adr_socket_path: self.adr_dialect}
        return {self.socket_path: PLAIN} | adr
