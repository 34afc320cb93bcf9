"""When an engine counts as hung, and when it has crashed too often: no clock, no process."""

from __future__ import annotations

from vlmd_bridge.workers.crashes import MAX_CRASHES, CrashCounter
from vlmd_bridge.workers.quiet import Quiet


def test_quiet_for_too_long_is_hung() -> None:
    quiet = Quiet(10.0)
    for _ in range(9):
        quiet.tick(1.0)
    assert not quiet.hung
    quiet.progress()
    for _ in range(9):
        quiet.tick(1.0)
    assert not quiet.hung
    quiet.tick(1.0)
    assert quiet.hung


def test_time_in_which_we_did_not_run_does_not_count() -> None:
    quiet = Quiet(10.0)
    for _ in range(5):
        quiet.tick(1.0)
    quiet.tick(3600.0)  # the machine slept
    assert quiet.quiet_s == 5.0 and not quiet.hung


def test_one_that_computes_is_given_ten_times_as_long() -> None:
    busy, idle = Quiet(10.0), Quiet(10.0)
    for second in range(1, 100):
        busy.tick(1.0, cpu_s=50.0 + second)
        idle.tick(1.0, cpu_s=50.0)
        assert not busy.hung
        assert idle.hung == (second >= 10)
    busy.tick(1.0, cpu_s=150.0)
    assert busy.hung


def test_five_crashes_in_a_row_are_too_many_and_old_ones_are_forgotten() -> None:
    crashes = CrashCounter(180.0)
    assert [crashes.crashed(ready_s) for ready_s in (100.0, 10.0, 10.0, 10.0)] == [1, 2, 3, 4]
    assert crashes.crashed(151.0) == 4  # the first is out of the window
    assert crashes.crashed(1.0) == MAX_CRASHES


def test_crashes_do_not_grow_old_while_the_engine_does_not_get_ready() -> None:
    crashes = CrashCounter(180.0)
    assert [crashes.crashed(ready_s) for ready_s in (1000.0, 0.0, 0.0, 179.0)] == [1, 2, 3, 4]
    assert crashes.crashed(1.0) == 2  # three of them were 180 s ago


def test_a_finished_sequence_between_crashes_shows_that_the_engine_works() -> None:
    crashes = CrashCounter(180.0)
    for crash in range(50):
        assert crashes.crashed(1.0) <= 2
        if crash % 2:
            crashes.progressed()


def test_the_wait_before_a_start_doubles() -> None:
    crashes = CrashCounter(180.0)
    waits = []
    for _ in range(4):
        crashes.crashed(1.0)
        waits.append(crashes.backoff_s())
    assert waits == [0.25, 0.5, 1.0, 2.0]
