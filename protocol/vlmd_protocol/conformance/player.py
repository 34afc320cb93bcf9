"""Plays one dialogue: a list of steps on one or more connections."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vlmd_protocol.conformance.match import mismatch
from vlmd_protocol.conformance.peer import BadLine, Peer, PeerGone, Silence
from vlmd_protocol.conformance.pictures import write_picture
from vlmd_protocol.vectors import Case, to_bytes

# An expectation that names no other deadline. A server under test may load its model first.
DEFAULT_TIMEOUT_S: Final = 20.0

_POLL_S = 0.02
_PICTURE = re.compile(r"\$\{picture:(\d+)\}")


class CaseFailed(Exception):
    """The server did something else than the case expects; the message has the step."""


class Player:
    """Plays a case against the server at `socket_path`, with `folder` for its pictures.

    `on_line` is called with each line that comes, before it is compared.
    """

    def __init__(
        self,
        socket_path: str,
        folder: Path,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_line: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._folder = folder
        self._timeout_s = timeout_s
        self._on_line = on_line
        self._peers: dict[str, Peer] = {}
        self._case: Case = {}

    def play(self, case: Case) -> None:
        """Play every step.

        Raises:
            CaseFailed: the server did something else.
        """
        self._case = case
        try:
            for number, step in enumerate(case["steps"], 1):
                try:
                    self._step(self._fill(step))
                except (CaseFailed, PeerGone, Silence, BadLine, OSError) as error:
                    raise CaseFailed(f"step {number}, {_name(step)}: {error}") from error
        finally:
            for peer in self._peers.values():
                peer.close()
            self._peers.clear()

    def _step(self, step: dict[str, Any]) -> None:
        peer = self._peer(step.get("on", "main"))
        match _name(step):
            case "connect":
                pass
            case "send":
                peer.send(_line(step["send"]), self._timeout_s)
            case "send_all":
                peer.send(b"".join(map(_line, step["send_all"])), self._timeout_s)
            case "send_bytes":
                peer.send(to_bytes(step["send_bytes"]), self._timeout_s)
            case "pause_ms":
                time.sleep(step["pause_ms"] / 1000)
            case "half_close":
                peer.half_close()
            case "close":
                self._peers.pop(step.get("on", "main")).close()
            case "expect":
                self._expect(peer, step["expect"])
            case "expect_each":
                self._expect_each(peer, step["expect_each"])
            case "expect_end":
                self._expect_end(peer, step)
            case "expect_text":
                self._expect_text(peer, step["expect_text"])
            case "expect_close":
                self._expect_close(peer)
            case "expect_silence_ms":
                self._expect_silence(peer, step["expect_silence_ms"])
            case "eventually":
                self._eventually(step["eventually"])
            case unknown:
                raise ValueError(f"no step {unknown}")

    def _expect(self, peer: Peer, pattern: Any) -> None:
        if why := mismatch(pattern, self._next(peer)):
            raise CaseFailed(why)

    def _expect_each(self, peer: Peer, patterns: list[Any]) -> None:
        """Lines of one id come in the order of their patterns; those of different ids in any."""
        left = list(patterns)
        while left:
            line = self._next(peer)
            pattern = next((p for p in left if p.get("id") == line.get("id")), None)
            if pattern is None:
                raise CaseFailed(f"a line that nothing expects: {str(line)[:200]}")
            if why := mismatch(pattern, line):
                raise CaseFailed(why)
            left.remove(pattern)

    def _expect_end(self, peer: Peer, step: dict[str, Any]) -> None:
        """Lines that match `before`, as many as come, and then the one that ends the request."""
        while not (line := self._next(peer)).get("done"):
            if why := mismatch(step.get("before", {}), line):
                raise CaseFailed(why)
        if why := mismatch(step["expect_end"], line):
            raise CaseFailed(why)

    def _expect_text(self, peer: Peer, pattern: dict[str, Any]) -> None:
        """Deltas whose texts together are those of the last line."""
        text = reasoning = ""
        deltas = 0
        while not (line := self._next(peer)).get("done"):
            if why := mismatch({"id": pattern["id"], "text": {"$absent": True}}, line):
                raise CaseFailed(why)
            text += line.get("delta", "")
            reasoning += line.get("reasoningDelta", "")
            deltas += 1
        if why := mismatch(pattern, line):
            raise CaseFailed(why)
        if deltas == 0:
            raise CaseFailed("no delta came")
        if (text, reasoning) != (line["text"], line.get("reasoning", "")):
            raise CaseFailed(f"the deltas are {text!r}, the text is {line['text']!r}")

    def _expect_close(self, peer: Peer) -> None:
        try:
            line = self._next(peer)
        except PeerGone:
            return
        raise CaseFailed(f"a line came: {str(line)[:200]}")

    def _expect_silence(self, peer: Peer, duration_ms: float) -> None:
        try:
            line = self._next(peer, duration_ms / 1000)
        except (Silence, PeerGone):
            return
        raise CaseFailed(f"a line came: {str(line)[:200]}")

    def _eventually(self, pattern: Any) -> None:
        """Ask `status` on a connection of its own until the result matches."""
        deadline = time.monotonic() + self._timeout_s
        peer = Peer(self._socket_path, ascii_only=False)
        try:
            while True:
                peer.send(_line({"id": 1, "method": "status"}), self._timeout_s)
                why = mismatch(pattern, peer.line(self._timeout_s).get("result"), "status")
                if why is None:
                    return
                if time.monotonic() > deadline:
                    raise CaseFailed(why)
                time.sleep(_POLL_S)
        finally:
            peer.close()

    def _next(self, peer: Peer, timeout_s: float | None = None) -> dict[str, Any]:
        while True:
            line = peer.line(self._timeout_s if timeout_s is None else timeout_s)
            if self._on_line is not None:
                self._on_line(line)
            if "event" not in line or self._case.get("events"):
                return line

    def _peer(self, name: str) -> Peer:
        if name not in self._peers:
            self._peers[name] = Peer(self._socket_path, ascii_only=bool(self._case.get("ascii")))
        return self._peers[name]

    def _fill(self, value: Any) -> Any:
        """Put paths in for ``${folder}`` and ``${picture:N}``, and write the pictures that are asked for."""
        if isinstance(value, str):
            return _PICTURE.sub(self._picture, value).replace("${folder}", str(self._folder))
        if isinstance(value, list):
            return [self._fill(item) for item in value]
        if isinstance(value, dict):
            return {key: self._fill(item) for key, item in value.items()}
        return value

    def _picture(self, found: re.Match[str]) -> str:
        path = self._folder / f"{found[1]}.png"
        if not path.exists():
            write_picture(path, int(found[1]))
        return str(path)


def _name(step: dict[str, Any]) -> str:
    return next(key for key in step if key not in ("on", "before"))


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
