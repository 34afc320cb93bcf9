"""A forked child gets a typed error, and neither the parent's connection nor its daemon notice the fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.client.conftest import COMMAND, Journal

PARENT = """
    import os, sys, vlmd
    client = vlmd.Client(command={command!r})
    pid = client.hello().pid
    batches = client.describe(f"/{{at}}.png" for at in range(40))
    next(batches)
    child = os.fork()
    if child == 0:
        for call in (client.ping, lambda: next(batches), lambda: client.describe(["/a.png"])):
            try:
                call()
            except vlmd.ClosedError as error:
                assert "after the fork" in str(error)
            else:
                os._exit(9)
        batches.close()
        client.close()
        with vlmd.Client(command={command!r}) as own:
            assert own.hello().pid != pid
        {ending}
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert client.hello().pid == pid
    assert client.ping().state == "ready"
    assert sum(len(batch.results) for batch in batches) == 36
    client.close()
"""


def run_parent(ending: str) -> None:
    code = textwrap.dedent(PARENT).format(command=COMMAND, ending=ending)
    subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-c", code], check=True, timeout=30)


def test_a_child_that_ends_at_once(journal: Journal) -> None:
    run_parent("os._exit(0)")


def test_a_child_that_runs_its_finalizers(journal: Journal) -> None:
    run_parent("del client, batches; sys.exit(0)")


def test_a_child_does_not_keep_the_parents_daemon_alive(journal: Journal) -> None:
    """The child inherits the pipe that holds the daemon; it must let go of it."""
    code = textwrap.dedent(f"""
        import os, time, vlmd
        client = vlmd.Client(command={COMMAND!r})
        client.hello()
        process = client._core.connector.process._process
        if os.fork() == 0:
            os.close(1)
            time.sleep(1.5)
            os._exit(0)
        process.stdin.close()
        started = time.monotonic()
        process.wait(5)
        assert time.monotonic() - started < 1
        client.close()
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
