"""`vlmd status`: exit 0 when the daemon is ready, 3 when none runs, 4 while or because the model is not loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import msgspec

from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, attached_client, chosen_socket
from vlmd_bridge.cli.printable import printable
from vlmd_protocol.messages import ModelStatus, StatusResult

_EXITS: Final[dict[str, int]] = {
    "ready": exits.OK,
    "loading": exits.MODEL,
    "failed": exits.MODEL,
    "draining": exits.NO_DAEMON,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_socket_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the daemon's status."""
    with attached_client(chosen_socket(args)) as client:
        status = client.status()
    if args.json:
        print(msgspec.json.encode(status).decode())
    else:
        rows = list(_rows(status))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{width}}  {printable(value)}")
    # A state of a newer daemon is none that runs requests at once.
    return _EXITS.get(status.state, exits.MODEL)


def _rows(status: StatusResult) -> Iterator[tuple[str, str]]:
    kind = "owned" if status.owned else "shared"
    yield "daemon", f"{status.state}, {kind}, pid {status.pid}, vlmd {status.version}, up {_duration(status.uptime_s)}"
    yield "socket", f"{status.socket} (connections: {status.connections})"
    yield "memory", f"{_mib(status.memory_bytes)} daemon"
    for model in status.models:
        yield from _model_rows(model)
    queue = status.queue
    yield (
        "queue",
        f"{queue.jobs} jobs; frames: {queue.queued} queued, {queue.decoding} decoding, {queue.ready} ready, "
        f"{queue.running} running",
    )
    yield "frames", f"{status.frames_done} described{_known(status)}, {status.frames_failed} failed"
    yield "image processes", ", ".join(f"pid {pid}" for pid in status.image_processes) or "none"
    if status.cache is not msgspec.UNSET:
        yield "result store", f"{status.cache.state}, {status.cache.path}"
        if status.cache.warning is not None:
            yield "", status.cache.warning
    yield "log file", status.log_file or "none"
    yield "fingerprint", status.fingerprint
    if status.faults:
        yield "fault points", ", ".join(status.faults)


def _known(status: StatusResult) -> str:
    """How many of the described frames needed no inference."""
    counts = ((status.frames_cached, "from the store"), (status.frames_duplicate, "duplicates"))
    parts = [f"{count} {what}" for count, what in counts if count is not msgspec.UNSET and count]
    return f" ({', '.join(parts)})" if parts else ""


def _model_rows(model: ModelStatus) -> Iterator[tuple[str, str]]:
    parts: list[str] = [model.state]
    if model.stage is not None:
        parts.append(model.stage if model.fraction is None else f"{model.stage} {model.fraction:.0%}")
    if model.pid is not None:
        parts.append(f"pid {model.pid}")
    if model.memory_bytes is not None:
        parts.append(_mib(model.memory_bytes))
    if model.active is not None:
        parts.append(f"{model.active} running")
    yield "model", f"{model.name}: {', '.join(parts)}"
    if model.error is not None:
        yield "", f"{model.error} [{model.code}]"
    # How it computes: backend, type of numbers, device, BLAS library, threads, batch width.
    shown = ("modelType", "dtype", "device", "blas", "threads", "width")
    if model.engine and (how := [f"{name} {model.engine[name]}" for name in shown if name in model.engine]):
        yield "engine", ", ".join(how)


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
