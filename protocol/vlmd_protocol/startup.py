"""The start-up lines of a daemon: what a spawner reads, before and beside the socket.

A spawner that passes ``--ready-fd N`` reads all of them there. Standard output carries the last one alone, which is
what ADR-006's client waits for. After `ReadyLine`, `RunningLine` or `FatalLine` none comes; the end of the stream
without one of them is a death.
"""

from __future__ import annotations

from typing import TypeAlias

from vlmd_protocol.messages import Wire


class BoundLine(Wire, frozen=True, kw_only=True, rename="camel", tag_field="status", tag="bound"):
    """The socket answers; requests sent now wait for the model."""

    socket: str
    pid: int


class LoadingLine(Wire, frozen=True, kw_only=True, rename="camel", tag_field="status", tag="loading"):
    """A model is on its way. Each of these lines shows life: a spawner starts its deadline again."""

    model: str | None = None
    stage: str | None = None
    fraction: float | None = None


class ReadyLine(Wire, frozen=True, kw_only=True, rename="camel", tag_field="status", tag="ready"):
    """The models are loaded. A last line."""

    model: str
    socket: str
    pid: int


class RunningLine(Wire, frozen=True, kw_only=True, rename="camel", tag_field="status", tag="running"):
    """Another daemon, `pid` (0 where unknown), listens at the socket: connect to it instead. A last line."""

    socket: str
    pid: int


class FatalLine(Wire, frozen=True, kw_only=True, rename="camel", tag_field="status", tag="fatal"):
    """The daemon could not start, or its model could not be loaded. A last line.

    `code` is one of the codes of requests, or a code of the start itself.
    """

    error: str
    code: str


StartupLine: TypeAlias = BoundLine | LoadingLine | ReadyLine | RunningLine | FatalLine
