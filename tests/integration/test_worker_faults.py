"""Whatever happens to a worker, frames are tried again, others are answered, and the log says what it was."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, eventually, gone, results

# A few seconds of work of the fake model, so that a fault strikes in its midst.
WORK = "fake:step_ms=5,tokens=30,width=4"


def images(pictures: list[str], count: int = 12) -> list[dict[str, str]]:
    return [{"imagePath": path} for path in pictures[:count]]


def log(daemon: Daemon) -> str:
    return (daemon.folder / "log").read_text()


# By the prompt that sets them off, in one daemon: how the log tells of each.
WORKER_FAULTS = {
    "segv": "Segmentation fault",
    "abort": "signal 6",
    "oom=32": "signal 9",
    "exit": "status 0",
    "torn": "status 0",
    "garbage": "what is no message",
    "shut": "the engine of",
    "flood": "",
    "hush": "",
    "hang": "made no progress",
    "wedge": "made no progress",
}

IMAGE_FAULTS = {
    "segv": "Segmentation fault",
    "kill": "signal 9",
    "torn": "status 0",
    "garbage": "what is no message",
    "hang": "took over",
}


@pytest.mark.parametrize(("model", "kinds"), [(WORK, list(WORKER_FAULTS)), ("demo", ["segv", "garbage", "hang"])])
def test_a_fault_of_a_worker_costs_no_frame(
    start_daemon: StartDaemon, pictures: list[str], model: str, kinds: list[str]
) -> None:
    faults = ",".join(f"worker.{kind}@text:of kind {kind}" for kind in kinds)
    daemon = start_daemon(model=model, faults=faults, hang_timeout_s=2).wait_ready()
    with daemon.connect() as others:
        for kind in kinds:
            seen = len(log(daemon))
            others.send(kind, "describe_images", images=images(pictures, 6))
            mine = results(daemon.ask("describe_images", images=images(pictures, 3), prompt=f"of kind {kind}"))
            found = [*mine, *results(others.answer())]
            assert not [result for result in found if result.get("error")], kind
            assert [result["index"] for result in found] == [*range(3), *range(6)]
            assert WORKER_FAULTS[kind] in log(daemon)[seen:], kind


def test_a_fault_of_an_image_process_costs_no_frame(
    start_daemon: StartDaemon, pictures: list[str], tmp_path: Path
) -> None:
    faults = ",".join(f"image.{kind}@path:{kind}.png" for kind in IMAGE_FAULTS)
    daemon = start_daemon(model=WORK, faults=faults, image_timeout_s=1.5).wait_ready()
    for kind, told in IMAGE_FAULTS.items():
        struck = shutil.copy(pictures[0], tmp_path / f"{kind}.png")
        found = results(daemon.ask("describe_images", images=images([*pictures[:3], str(struck), *pictures[3:]], 8)))
        codes = [result.get("code") for result in found]
        # A picture over which time ran out is not tried again: it would run out again.
        assert codes == [None] * 3 + ["image_timeout" if kind == "hang" else None] + [None] * 4, kind
        assert told in log(daemon), kind


@pytest.mark.parametrize(
    ("fault", "told"),
    [("worker.hang@message:4", ""), ("image.exit@start", "status 0"), ("image.hang@start", "for its start")],
)
def test_a_worker_that_hears_nothing_or_does_not_start_costs_no_frame(
    start_daemon: StartDaemon, pictures: list[str], fault: str, told: str
) -> None:
    daemon = start_daemon(model=WORK, faults=fault, hang_timeout_s=2, image_timeout_s=1.5).wait_ready()
    found = results(daemon.ask("describe_images", images=images(pictures)))
    assert [result["index"] for result in found] == list(range(12))
    assert not [result for result in found if result.get("error")]
    assert told in log(daemon)


def test_a_hang_leaves_its_stacks_in_the_log(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon(model=WORK, faults="worker.hang@step:10", hang_timeout_s=2).wait_ready()
    daemon.ask("describe_images", images=images(pictures, 4))
    text = log(daemon)
    assert "made no progress" in text and "with 4 sequences" in text
    assert "strike.py" in text and "in step" in text


def test_a_frame_that_hangs_twice_fails_alone(start_daemon: StartDaemon, pictures: list[str]) -> None:
    probe = start_daemon().wait_ready()
    digest = results(probe.ask("describe_images", images=images(pictures, 6)))[3]["description"].split()[1]
    daemon = start_daemon(model=WORK, faults=f"worker.hang@pixels:{digest}x*", hang_timeout_s=2).wait_ready()
    codes = [result.get("code") for result in results(daemon.ask("describe_images", images=images(pictures, 6)))]
    assert codes == [None] * 3 + ["worker_crashed"] + [None] * 2


def test_a_load_that_hangs_is_fatal_with_its_reason(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(faults="worker.hang@start", hang_timeout_s=2)
    line = daemon.wait_for("fatal", "ready")
    assert line["code"] == "model_load_failed" and "made no progress" in line["error"]
    assert daemon.process.wait(10) == 4


def test_a_worker_or_daemon_that_was_stopped_for_a_while_is_not_hung(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    daemon = start_daemon(model=WORK, hang_timeout_s=2).wait_ready()
    pid = daemon.engine_pid
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=images(pictures, 48))
        connection.line()
        os.kill(daemon.process.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # the time itself is what is tested
        os.kill(daemon.process.pid, signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)
        found = results(connection.answer())
    assert not [result for result in found if result.get("error")]
    assert daemon.engine_pid == pid


def test_an_engine_that_crashes_again_and_again_rests_and_comes_back(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    daemon = start_daemon(faults="worker.segv@step:1x5", crash_window_s=10).wait_ready()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=images(pictures, 48))
        *_, line = connection.answer()
    assert line["code"] == "engine_unavailable" and line["retryable"]
    assert 0 < line["data"]["retryAfterMs"] <= 10_000
    assert daemon.ask("ping")[0]["result"]["state"] == "ready"
    (model,) = daemon.status()["models"]
    assert model["state"] == "unavailable" and model["code"] == "engine_unavailable"
    assert 0 < model["retryAfterMs"] <= 10_000 and "crashed 5 times" in model["error"]
    assert daemon.ask("hello", client={"name": "test"})[0]["result"]["models"][0]["state"] == "unavailable"
    (refused,) = daemon.ask("describe_images", images=images(pictures, 1))
    assert refused["code"] == "engine_unavailable" and refused["data"]["retryAfterMs"] > 0
    eventually(lambda: daemon.status()["models"][0]["state"] == "ready", 20, what="the engine's return")
    assert not [r for r in results(daemon.ask("describe_images", images=images(pictures))) if r.get("error")]
    assert "error" not in daemon.status()["models"][0]


def test_bad_frames_do_not_make_the_engine_unavailable_for_good_ones(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    described = results(start_daemon().wait_ready().ask("describe_images", images=images(pictures, 48)))
    bad = (3, 12, 21, 30, 39)
    faults = ",".join(f"worker.segv@pixels:{described[at]['description'].split()[1]}x*" for at in bad)
    daemon = start_daemon(model="fake:width=2", faults=faults).wait_ready()
    found = results(daemon.ask("describe_images", images=images(pictures, 48)))
    assert [result["index"] for result in found if result.get("code") == "worker_crashed"] == list(bad)
    assert sum("error" not in result for result in found) == 48 - len(bad)


def test_an_image_process_that_never_starts_fails_pictures_and_nothing_else(
    start_daemon: StartDaemon, pictures: list[str]
) -> None:
    daemon = start_daemon(faults="image.exit@startx*").wait_ready()
    codes = {result.get("code") for result in results(daemon.ask("describe_images", images=images(pictures)))}
    assert codes == {"image_crashed"}
    assert daemon.ask("generate", prompt="hello")[-1]["done"]


def test_sigterm_ends_a_daemon_with_a_hung_worker(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon("--drain-timeout", "0.2", model=WORK, faults="worker.hang@step:3", hang_timeout_s=2)
    family = daemon.wait_ready().family()
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=images(pictures))
        eventually(lambda: daemon.status()["queue"]["running"])
        daemon.process.terminate()
        assert [line.get("code") for line in connection.answer()][-1] == "shutting_down"
    assert daemon.process.wait(15) == 0
    eventually(lambda: gone(family), 2, what="the end of every process")


def test_workers_are_out_of_reach_of_the_daemons_group(daemon: Daemon) -> None:
    groups = {process.pid: os.getpgid(process.pid) for process in daemon.family()}
    assert len(set(groups.values())) == len(groups)
    assert all(os.getpgid(pid) == pid for pid in groups if pid != daemon.process.pid)
    assert psutil.Process(daemon.engine_pid).parent() == psutil.Process(daemon.process.pid)


def test_a_worker_that_is_killed_in_its_first_load_is_loaded_once_more(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(faults="worker.kill@start").wait_ready()
    assert daemon.ask("generate", prompt="hello")[-1]["finishReason"] == "stop"


def test_a_model_that_crashes_every_load_is_given_up(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(faults="worker.segv@startx*")
    line = daemon.wait_for("fatal")
    assert line["code"] == "model_load_failed"
    assert "signal 11" in line["error"]
    assert daemon.process.wait(20) == 4
