"""vlmd itself: a daemon of its own on a private socket, asked through the Python client or line by line."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

import vlmd
from benchmark.contender import Run, tree_cpu_s
from vlmd_bridge.record import Record, format_record
from vlmd_protocol.messages import Mode

_MB = 1e6
_ANSWER_S = 1800


class Vlmd:
    """A `Contender`. `environment` is the daemon's, for `VLMD_*` settings; `mode` as `describe_images` has it."""

    def __init__(self, name: str, model: str, *, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._environment = environment or {}
        # Of this interpreter and this checkout, whatever is installed beside.
        self.client = vlmd.Client(model, shared=False, command=[sys.executable, "-m", "vlmd"], log=lambda _: None)

    def ready(self) -> None:
        """Start the daemon; it answers a picture when its model has loaded."""
        with _environment(self._environment):
            self.client.hello()

    def describe(self, paths: Sequence[str], *, mode: Mode = "parallel") -> Run:
        """Describe the pictures."""
        images = [vlmd.Image(path, timestamp=float(i)) for i, path in enumerate(paths)]
        cpu_s, start_s = self.cpu_s(), time.perf_counter()
        frames = self.client.describe_all(images, mode=mode, cache=False)
        seconds = time.perf_counter() - start_s
        return Run(seconds=seconds, cpu_seconds=self.cpu_s() - cpu_s, texts=[_text(frame) for frame in frames])

    def rest(self) -> None:
        """A daemon without requests waits on its sockets."""

    def close(self) -> None:
        """End the daemon."""
        self.client.close()

    @property
    def socket(self) -> str:
        """Where it listens."""
        return self.client.status().socket

    def engine(self) -> dict[str, Any]:
        """Return what the engine says of itself."""
        return self.client.status().models[0].engine or {}

    def memory_mb(self) -> dict[str, float]:
        """Return the resident memory of the daemon, its image processes and its engine worker, MB."""
        status = self.client.status()
        pids = {"daemon": status.pid, "engine": status.models[0].pid}
        pids |= {f"image process {i}": pid for i, pid in enumerate(status.image_processes, 1)}
        return {name: psutil.Process(pid).memory_info().rss / _MB for name, pid in pids.items() if pid}

    def cpu_s(self) -> float:
        """Return the processor time of all its processes, seconds."""
        return tree_cpu_s(self.client.status().pid)


class Interleaved:
    """A `Contender`: the daemon of another, in ADR-006's mode, four frames a prompt."""

    def __init__(self, name: str, vlmd: Vlmd) -> None:
        self.name = name
        self._vlmd = vlmd

    def ready(self) -> None:
        """Wait for the daemon."""
        self._vlmd.ready()

    def describe(self, paths: Sequence[str]) -> Run:
        """Describe the pictures."""
        return self._vlmd.describe(paths, mode="interleaved")

    def rest(self) -> None:
        """A daemon without requests waits on its sockets."""

    def close(self) -> None:
        """The daemon is the other's."""


class Lines:
    """A connection that speaks the protocol by hand: for what the clients do not offer, and to time it barely."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_S)
        self._socket.connect(path)
        self._reader = self._socket.makefile("rb")
        self._id = 0
        hello: dict[str, Any] = self.ask("hello", protocol=1)["result"]
        self.capabilities: list[str] = hello.get("capabilities", [])

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Return the last line of the answer."""
        *_, last = self.lines(method, **params)
        return last

    def lines(self, method: str, **params: object) -> Iterator[dict[str, Any]]:
        """Yield the lines of the answer."""
        self._id += 1
        request = {"id": self._id, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            text = self._reader.readline()
            if not text:
                raise ConnectionError("the daemon closed the connection")
            line = json.loads(text)
            if line.get("id") != self._id:
                continue  # an event
            if "error" in line:
                raise RuntimeError(f"{method}: {line['error']}")
            yield line
            if "result" in line or line.get("done"):
                return

    def frames(self, images: Sequence[dict[str, object]], **params: object) -> list[dict[str, Any]]:
        """Describe `images` and return the result of each."""
        return [
            result
            for line in self.lines("describe_images", images=list(images), **params)
            for result in line["results"]
        ]

    def close(self) -> None:
        """End the connection."""
        self._reader.close()
        self._socket.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def image_refs(paths: Sequence[str]) -> list[dict[str, object]]:
    """Return `paths` as `describe_images` takes them, a second apart."""
    return [{"imagePath": path, "timestamp": float(i)} for i, path in enumerate(paths)]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the daemon that is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _text(frame: vlmd.Frame[None]) -> str:
    if not frame.ok:
        return f"(failed: {frame.code})"
    return format_record(
        Record(
            description=frame.description, activity=frame.activity, apps=tuple(frame.apps), topics=tuple(frame.topics)
        )
    )
