"""A program that obeys the command line of ``vlmd serve`` and serves `fake_server.obedient`, faults on demand.

    python fake_daemon.py serve --socket PATH [--model M] [--owned] [--ready-fd N] [--idle-timeout S]

What it should do wrong stands in the environment, as JSON in ``FAKE_DAEMON``:

    journal      file that gets a line for each start and each frame sent
    stderr       lines to write to standard error first
    exit         status to end with before it is bound
    exit_at      the starts, from 1, to which `exit` is limited
    fatal        {"error": …, "code": …} to report before it is bound
    fatal_late   the same, after it is bound, and after the first request
    loading      seconds for which it reports progress before it is bound
    mute         report nothing at all
    die_at       for each start, the number of the batch or delta before which it kills itself; null for never
    pause_s      seconds before each batch or delta
    ignore_term  do not end by itself, nor by SIGTERM
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.fake_server import FakeServer, Message, hello_result, obedient


class FakeDaemon:
    """One run of the program."""

    def __init__(self, arguments: argparse.Namespace, faults: Message) -> None:
        self.arguments = arguments
        self.faults = faults
        self.starts = 0
        self.batches = 0

    def run(self) -> int:
        self.starts = self.journal("start", args=sys.argv[1:])
        for line in self.faults.get("stderr", []):
            print(line, file=sys.stderr, flush=True)
        if "exit" in self.faults and self.starts in self.faults.get("exit_at", [self.starts]):
            return int(self.faults["exit"])
        if "fatal" in self.faults:
            self.tell("fatal", **self.faults["fatal"])
            return 4
        if self.faults.get("mute"):
            time.sleep(60)
        deadline = time.monotonic() + self.faults.get("loading", 0)
        while time.monotonic() < deadline:
            self.tell("loading", stage="weights", fraction=0.5)
            time.sleep(0.05)
        return self.serve()

    def serve(self) -> int:
        path = Path(self.arguments.socket)
        with open(path.with_name(path.name + ".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.tell("running", socket=str(path), pid=0)
                return 0
            path.unlink(missing_ok=True)
            dialogue = obedient(
                before_batch=self.before_batch, before_delta=self.before_delta, hello=hello_result(pid=os.getpid())
            )
            with FakeServer(path, dialogue) as server:
                self.tell("bound", socket=str(path), pid=os.getpid())
                if "fatal_late" in self.faults:
                    server.wait_for(lambda: "describe_images" in server.methods())
                    self.tell("fatal", **self.faults["fatal_late"])
                    return 4
                self.tell("ready", socket=str(path), pid=os.getpid(), model=self.arguments.model)
                self.wait_for_end(server)
        return 0

    def wait_for_end(self, server: FakeServer) -> None:
        stop = server.asked_to_stop
        if self.faults.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stop = threading.Event()
        else:
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            if self.arguments.owned:
                threading.Thread(target=self.watch_stdin, args=(stop,), daemon=True).start()
        while not stop.wait(0.05):
            if self.arguments.owned and os.getppid() == 1:
                return

    def watch_stdin(self, stop: threading.Event) -> None:
        while os.read(0, 4096):
            continue
        stop.set()

    def before_batch(self, line: Message) -> None:
        self.before_line()
        self.journal("batch", frames=[result["index"] for result in line["results"]])

    def before_delta(self, line: Message) -> None:
        self.before_line()
        self.journal("delta")

    def before_line(self) -> None:
        self.batches += 1
        time.sleep(self.faults.get("pause_s", 0))
        die_at = self.faults.get("die_at", [])
        if self.starts <= len(die_at) and die_at[self.starts - 1] == self.batches:
            print("[MLX] about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self, status: str, **fields: Any) -> None:
        if self.arguments.ready_fd is not None:
            try:
                os.write(self.arguments.ready_fd, json.dumps({"status": status, **fields}).encode() + b"\n")
            except BrokenPipeError:
                return

    def journal(self, what: str, **fields: Any) -> int:
        """Append a line; return how many of its kind there are."""
        if "journal" not in self.faults:
            return 1
        with open(self.faults["journal"], "a+") as file:
            file.write(json.dumps({"what": what, "pid": os.getpid(), **fields}) + "\n")
            file.flush()
            file.seek(0)
            return sum(json.loads(line)["what"] == what for line in file)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model")
    parser.add_argument("--text-model")
    parser.add_argument("--owned", action="store_true")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--idle-timeout", type=float)
    return FakeDaemon(parser.parse_args(), json.loads(os.environ.get("FAKE_DAEMON", "{}"))).run()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads that serve are not waited for
