"""The client for anyio: asyncio and trio."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Unpack

import anyio
import anyio.abc

from vlmd._anyio_runtime import AsyncRuntime
from vlmd._core import ClientCore
from vlmd._describe import DescribeRun
from vlmd._images import ImageLike
from vlmd._options import ClientOptions, DescribeOptions, start_run
from vlmd._results import Batch, Frame
from vlmd._settings import resolve
from vlmd_protocol.errors import ClosedError
from vlmd_protocol.messages import HelloResult, PingResult, ShutdownResult, StatusResult


class AsyncBatches(AsyncIterator[Batch]):
    """The batches of one call, in order. To leave it, by ``break``, cancellation or `aclose`, cancels on the daemon."""

    def __init__(self, describe_run: DescribeRun) -> None:
        self._run = describe_run

    async def __anext__(self) -> Batch:
        batch = await self._run.next()
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """Cancel what is under way."""
        self._run.leave()

    async def __aenter__(self) -> AsyncBatches:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._run.leave()

    def __del__(self) -> None:
        self._run.leave()


class AsyncClient:
    """A vlmd client for ``async with``. Its daemon starts with the first call that needs one.

    Args:
        model: that a started daemon loads, by name or path.
        options: see `ClientOptions`.

    Raises:
        UnsafeSocketError: the socket's path is too long.
        ValueError: the arguments contradict each other.
    """

    def __init__(self, model: str | None = None, **options: Unpack[ClientOptions]) -> None:
        self._settings = resolve(model=model, **options)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._runtime: AsyncRuntime | None = None
        self._entered: ClientCore | None = None

    async def hello(self) -> HelloResult:
        """Connect if need be, and return what the daemon is.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.hello()

    async def ping(self) -> PingResult:
        """Ask whether the daemon is alive; it answers at once, also while it infers or loads.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.ping()

    async def status(self) -> StatusResult:
        """Return models, queue and memory of the daemon.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.status()

    async def shutdown(self) -> ShutdownResult:
        """Tell the daemon, a shared one too, to drain and end. A later call starts another.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.shutdown()

    def describe(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DescribeOptions]
    ) -> AsyncBatches:
        """Describe images and return their batches as they come.

        Args:
            images: paths, ``(path, timestamp)`` pairs or `Image`s; any iterable or async iterable, also an endless
                one: it is read only a few hundred frames ahead of the batches that are taken. A plain iterable is
                read in the event loop and should not block.
            options: see `DescribeOptions`.

        Raises:
            InvalidRequestError: the batch size is out of bounds.
            TypeError: `images` is a single image.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost and could not be had back.
        """
        return AsyncBatches(start_run(self._core, images, **options))

    async def describe_all(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DescribeOptions]
    ) -> list[Frame]:
        """Describe images and return all their frames, in order; see `describe`."""
        return [frame async for batch in self.describe(images, **options) for frame in batch.results]

    async def close(self) -> None:
        """End the connection, and a private daemon with it; who still waits gets `ClosedError`."""
        with anyio.CancelScope(shield=True):  # bounded by the deadlines of the daemon's end
            await self._core.close()

    @property
    def _core(self) -> ClientCore:
        if self._entered is None:
            raise ClosedError("Use the client within `async with AsyncClient(...) as client:`.")
        return self._entered

    async def __aenter__(self) -> AsyncClient:
        if self._entered is not None:
            raise ClosedError("A client is entered once; make another.")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._runtime = AsyncRuntime(self._tasks)
        self._entered = ClientCore(self._runtime, self._settings)
        self._finalizer = weakref.finalize(self, self._entered.forget)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        assert self._runtime is not None
        await self.close()
        self._finalizer.detach()
        self._runtime.stop()
        return await self._tasks.__aexit__(kind, error, traceback)
