"""The client for code without an event loop."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Unpack

from vlmd._blocking import BlockingRuntime, run
from vlmd._core import ClientCore
from vlmd._describe import DescribeRun
from vlmd._images import ImageLike
from vlmd._options import ClientOptions, DescribeOptions, start_run
from vlmd._results import Batch, Frame
from vlmd._settings import resolve
from vlmd_protocol.messages import HelloResult, PingResult, ShutdownResult, StatusResult


class Batches(Iterator[Batch]):
    """The batches of one call, in order. To leave it, by ``break``, an exception or `close`, cancels on the daemon."""

    def __init__(self, client: Client, describe_run: DescribeRun) -> None:
        self._client = client  # a client that nobody else holds must live as long as its batches
        self._run = describe_run

    def __next__(self) -> Batch:
        batch = run(self._run.next())
        if batch is None:
            raise StopIteration
        return batch

    def close(self) -> None:
        """Cancel what is under way."""
        self._run.leave()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._run.leave()


class Client:
    """A vlmd client. Its daemon starts with the first call that needs one. May be used by many threads.

    Args:
        model: that a started daemon loads, by name or path.
        options: see `ClientOptions`.

    Raises:
        UnsafeSocketError: the socket's path is too long.
        ValueError: the arguments contradict each other.
    """

    def __init__(self, model: str | None = None, **options: Unpack[ClientOptions]) -> None:
        self._core = ClientCore(BlockingRuntime(), resolve(model=model, **options))
        self._finalizer = weakref.finalize(self, self._core.forget)

    def hello(self) -> HelloResult:
        """Connect if need be, and return what the daemon is.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.hello())

    def ping(self) -> PingResult:
        """Ask whether the daemon is alive; it answers at once, also while it infers or loads.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.ping())

    def status(self) -> StatusResult:
        """Return models, queue and memory of the daemon.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.status())

    def shutdown(self) -> ShutdownResult:
        """Tell the daemon, a shared one too, to drain and end. A later call starts another.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.shutdown())

    def describe(self, images: Iterable[ImageLike], **options: Unpack[DescribeOptions]) -> Batches:
        """Describe images and return their batches as they come.

        Args:
            images: paths, ``(path, timestamp)`` pairs or `Image`s; any iterable, also an endless one: it is read, on
                the caller's thread, only a few hundred frames ahead of the batches that are taken.
            options: see `DescribeOptions`.

        Raises:
            InvalidRequestError: the batch size is out of bounds.
            TypeError: `images` is a single image.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost and could not be had back.
        """
        return Batches(self, start_run(self._core, images, **options))

    def describe_all(self, images: Iterable[ImageLike], **options: Unpack[DescribeOptions]) -> list[Frame]:
        """Describe images and return all their frames, in order; see `describe`."""
        return [frame for batch in self.describe(images, **options) for frame in batch.results]

    def close(self) -> None:
        """End the connection, and a private daemon with it; who still waits gets `ClosedError`."""
        run(self._core.close())
        self._finalizer.detach()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
