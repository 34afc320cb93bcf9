"""Promise 1: hostile input ends no daemon, leaves no traceback in its log, gets no answer with a wrong id, and harms no
other connection.

Mutated vectors, random bytes, deep nesting, bad UTF-8, odd ids, lines cut or run together, on eight connections whose
bytes come in pieces and in turns; and lines without an end. A ninth connection asks `ping` all the while.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.conftest import StartDaemon
from tests.faults.figures import figure, rounds
from tests.faults.hostile_peers import Bystander, HostilePeer, serve_all
from tests.support.daemon import Daemon
from vlmd_protocol.limits import MAX_FRAME_BYTES

LINES = rounds(push=100_000, long=10_000_000)
PEERS = 8

# What one connection sends in its life: so that many connections begin and end among the others.
LINES_OF_A_PEER = 2_500

SEED = int(os.environ.get("VLMD_SEED", "20260101"))

# A bystander waits for one turn of each peer, 64 KiB at a time: some 50 ms, and much more on a busy machine.
BYSTANDER_P99_S = 1.0


def unharmed(daemon: Daemon) -> None:
    """Assert that the daemon lives and that no line of its log tells of a defect."""
    assert daemon.process.poll() is None
    log = (daemon.folder / "log").read_text()
    for text in (log, "\n".join(daemon.stderr)):
        assert "Traceback" not in text
        assert "a defect in" not in text


def test_hostile_lines(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_ready()
    engine, image = daemon.engine_pid, daemon.image_pid
    rng = random.Random(SEED)
    began_s = time.monotonic()
    with Bystander(daemon.socket_path) as bystander:
        sent = connections = 0
        while sent < LINES:
            peers = [HostilePeer(daemon.socket_path, rng.getrandbits(32), LINES_OF_A_PEER) for _ in range(PEERS)]
            serve_all(peers, rng)
            for peer in peers:
                peer.check()
                sent += peer.sent
            connections += PEERS
    took_s = time.monotonic() - began_s
    unharmed(daemon)
    assert (daemon.engine_pid, daemon.image_pid) == (engine, image)
    assert daemon.status()["queue"]["jobs"] == 0
    figure(
        "1", lines=sent, connections=connections, seed=SEED, per_s=round(sent / took_s), pings=len(bystander.took_s),
        ping_p99_ms=round(1000 * bystander.p99_s, 1), exits=0, tracebacks=0, wrong_ids=0,
    )  # fmt: skip
    assert bystander.p99_s < BYSTANDER_P99_S


@pytest.mark.parametrize("byte", [b"x", b"[", b" ", b"\xff", b"\0"])
def test_a_line_without_end(daemon: Daemon, byte: bytes) -> None:
    with Bystander(daemon.socket_path) as bystander:
        with daemon.connect() as connection:
            connection.ask(1, "ping")
            connection.socket.sendall(byte * (MAX_FRAME_BYTES + 1))
            (line,) = connection.lines()
        assert (line["id"], line["code"], line["done"]) == (None, "frame_too_large", True)
    unharmed(daemon)
    assert bystander.p99_s < BYSTANDER_P99_S


def test_a_peer_that_ends_in_the_middle_of_a_line(daemon: Daemon) -> None:
    before = daemon.status()["connections"]
    for number in range(rounds(push=100, long=1_000)):
        with daemon.connect() as connection:
            line = b'{"id":%d,"method":"ping"}' % number
            connection.send_bytes(line[: 1 + number % len(line)])
    assert daemon.ask("ping")[0]["result"]["state"] == "ready"
    unharmed(daemon)
    assert daemon.status()["connections"] == before
