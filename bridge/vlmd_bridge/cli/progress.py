"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Protocol, Self

# In a log file a line now and then shows that it goes on; more would bury what else is there.
PLAIN_INTERVAL_S: Final = 5.0


class ProgressView(Protocol):
    """Shows how many frames are done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def update(self, done: int) -> None:
        """Show that `done` frames are done."""

    def note(self, text: str) -> None:
        """Show what is waited for before the first frame."""


class Rate:
    """Frames per second since the first frames came: loading the model is not part of it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def of(self, done: int) -> tuple[float | None, float | None]:
        """Return frames per second and seconds left, None where nothing can be said yet."""
        now = time.monotonic()
        if self._first is None:
            if done:
                self._first = (now, done)
            return None, None
        since, before = self._first
        if done <= before or now <= since:
            return None, None
        per_s = (done - before) / (now - since)
        return per_s, (self.total - done) / per_s


class PlainProgress:
    """A line on stderr every few seconds."""

    def __init__(self, total: int) -> None:
        self._rate = Rate(total)
        self._printed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def update(self, done: int) -> None:
        """Show that `done` frames are done, if the last line is long enough ago."""
        per_s, left_s = self._rate.of(done)
        now = time.monotonic()
        if now - self._printed_at < PLAIN_INTERVAL_S:
            return
        self._printed_at = now
        speed = "" if per_s is None or left_s is None else f", {per_s:.2f} frames/s, {left_s:.0f} s left"
        print(f"vlmd: {done} of {self._rate.total} frames{speed}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show what is waited for."""
        print(f"vlmd: {text}", file=sys.stderr, flush=True)


class BarProgress:
    """A bar with frames per second and time left."""

    def __init__(self, total: int) -> None:
        # Only where there is a terminal: importing it takes longer than a request.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self._rate = Rate(total)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=Console(stderr=True),
            transient=True,
            # Rows printed meanwhile go above the bar; only where stdout is the same terminal, else they would be lost.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        self._task = self._bar.add_task("starting", total=total, speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int) -> None:
        """Show that `done` frames are done."""
        per_s, left_s = self._rate.of(done)
        speed = "" if per_s is None or left_s is None else f"{per_s:.2f} frames/s, {left_s:.0f} s left"
        self._bar.update(self._task, completed=done, speed=speed, description="describing")

    def note(self, text: str) -> None:
        """Show what is waited for."""
        self._bar.update(self._task, description=text)


def progress_view(total: int) -> ProgressView:
    """Return the view that suits stderr."""
    return BarProgress(total) if sys.stderr.isatty() else PlainProgress(total)
