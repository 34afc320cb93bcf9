"""Deadlines do not pass while this process cannot run, and a connection that died meanwhile is made anew."""

from __future__ import annotations

import os
import signal
import threading

import psutil
import pytest

import vlmd
from tests.client.conftest import COMMAND, Journal, wait_until, wait_until_gone
from vlmd._blocking import BlockingRuntime, run
from vlmd._clock import SLICE_S, AwakeClock


class Hands:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def __call__(self) -> float:
        return self.time_s


def test_a_pause_does_not_count() -> None:
    hands = Hands()
    clock = AwakeClock(hands)
    until_s = clock.now_s() + 5.0
    for _ in range(3):
        began, slice_s = clock.began(), clock.slice_s(until_s)
        assert slice_s == SLICE_S
        hands.time_s += slice_s
        clock.ended(began, slice_s)
    began, slice_s = clock.began(), clock.slice_s(until_s)
    hands.time_s += 8 * 3600  # a night
    clock.ended(began, slice_s)
    assert clock.now_s() == until_s - 1.0


def test_two_threads_that_see_the_same_pause_count_it_once() -> None:
    hands = Hands()
    clock = AwakeClock(hands)
    first, second = clock.began(), clock.began()
    hands.time_s += 101.0
    clock.ended(first, 1.0)
    clock.ended(second, 0.5)
    assert clock.now_s() == 1001.0


def test_a_late_wake_up_is_no_pause() -> None:
    hands = Hands()
    clock = AwakeClock(hands)
    began = clock.began()
    hands.time_s += 2.0
    clock.ended(began, 1.0)
    assert clock.now_s() == 1002.0


def test_a_blocked_thread_waits_in_pieces() -> None:
    runtime = BlockingRuntime()
    waited = runtime.signal()
    began_s = runtime.now_s()
    run(waited.wait(began_s + 60.0))  # returns after a piece: the caller looks at the clock again
    assert SLICE_S * 0.9 < runtime.now_s() - began_s < 10


@pytest.mark.parametrize("how", ["killed", "asked to end"])
@pytest.mark.parametrize("method", ["ping", "status"])
def test_the_next_call_finds_a_dead_connection_and_recovers(journal: Journal, how: str, method: str) -> None:
    with vlmd.Client(command=COMMAND) as client:
        client.ping()
        (pid,) = journal.pids
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGTERM)
        wait_until_gone(pid)
        assert getattr(client, method)()
        assert len(journal.pids) == 2


def test_a_call_whose_connection_dies_under_it_is_asked_again(journal: Journal) -> None:
    with vlmd.Client(command=COMMAND) as client:
        client.ping()
        (pid,) = journal.pids
        os.kill(pid, signal.SIGSTOP)  # it takes the question, and dies before it answers
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(client.ping()))
        asking.start()
        os.kill(pid, signal.SIGKILL)
        asking.join(10)
        assert len(answers) == 1 and len(journal.pids) == 2
