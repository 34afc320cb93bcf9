"""Claims of the chapter on embedding that no other test makes sure of."""

from __future__ import annotations

import time

from tests.conftest import StartDaemon
from tests.support.daemon import results


def test_a_pause_of_the_whole_daemon_costs_no_frame(start_daemon: StartDaemon, pictures: list[str]) -> None:
    """Stopped and continued, as sleep does it, only harder: the monotonic clock goes on meanwhile."""
    daemon = start_daemon(model="fake:step_ms=10,tokens=40,width=4").wait_ready()
    workers = {daemon.engine_pid, daemon.image_pid}
    with daemon.connect() as connection:
        connection.send(1, "describe_images", images=[{"imagePath": path} for path in pictures[:16]])
        lines = [connection.line()]
        family = daemon.family()
        for process in family:
            process.suspend()
        time.sleep(2)
        for process in family:
            process.resume()
        lines += connection.answer()
    assert len(results(lines)) == 16
    assert not any("error" in frame for frame in results(lines))
    assert {daemon.engine_pid, daemon.image_pid} == workers
