"""The client for anyio: asyncio and trio."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import Any, Literal, Unpack, overload

import anyio
import anyio.abc

from vlmd._anyio_runtime import AsyncRuntime
from vlmd._async_batches import AsyncBatches
from vlmd._async_generation import AsyncGeneration
from vlmd._core import ClientCore
from vlmd._generate import run_count
from vlmd._generate_options import CountOptions, GenerateOptions, start_count, start_generate
from vlmd._images import ImageLike
from vlmd._options import ClientOptions, DescribeOptions, start_run
from vlmd._prompt import Prompt
from vlmd._results import Frame
from vlmd._settings import resolve
from vlmd._types import Value
from vlmd_protocol.errors import ClosedError
from vlmd_protocol.messages import CacheResult, CountResult, HelloResult, PingResult, ShutdownResult, StatusResult


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

    async def cache(self, action: Literal["info", "clear"] = "info") -> CacheResult:
        """Return what the daemon's result store holds; ``clear`` removes everything in it first.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.cache(action)

    async def shutdown(self) -> ShutdownResult:
        """Tell the daemon, a shared one too, to drain and end. A later call starts another.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await self._core.shutdown()

    @overload
    def describe(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: None = None,
        **options: Unpack[DescribeOptions],
    ) -> AsyncBatches[None]: ...

    @overload
    def describe(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: type[Value],
        **options: Unpack[DescribeOptions],
    ) -> AsyncBatches[Value]: ...

    @overload
    def describe(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: object,
        **options: Unpack[DescribeOptions],
    ) -> AsyncBatches[Any]: ...

    def describe(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: object = None,
        **options: Unpack[DescribeOptions],
    ) -> AsyncBatches[Any]:
        """Describe images and return their batches as they come.

        Args:
            images: paths, ``(path, timestamp)`` pairs or `Image`s; any iterable or async iterable, also an endless
                one: it is read only a few hundred frames ahead of the batches that are taken. A plain iterable is
                read in the event loop and should not block.
            schema: of each frame's `record`: a JSON Schema, or a type of which each frame's `value` is an instance;
                see `generate`.
            options: see `DescribeOptions`.

        Raises:
            InvalidRequestError: the batch size is out of bounds.
            TypeError: `images` is a single image, or `schema` is none.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost and could not be had back.
        """
        return AsyncBatches(start_run(self._core, images, schema=schema, **options))

    @overload
    async def describe_all(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: None = None,
        **options: Unpack[DescribeOptions],
    ) -> list[Frame[None]]: ...

    @overload
    async def describe_all(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: type[Value],
        **options: Unpack[DescribeOptions],
    ) -> list[Frame[Value]]: ...

    @overload
    async def describe_all(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: object,
        **options: Unpack[DescribeOptions],
    ) -> list[Frame[Any]]: ...

    async def describe_all(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        schema: object = None,
        **options: Unpack[DescribeOptions],
    ) -> list[Frame[Any]]:
        """Describe images and return all their frames, in order; see `describe`."""
        return [frame async for batch in self.describe(images, schema=schema, **options) for frame in batch.results]

    @overload
    def generate(
        self, prompt: Prompt, *, schema: None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration[None]: ...

    @overload
    def generate(
        self, prompt: Prompt, *, schema: type[Value], **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration[Value]: ...

    @overload
    def generate(
        self, prompt: Prompt, *, schema: object, **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration[Any]: ...

    def generate(
        self, prompt: Prompt, *, schema: object = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration[Any]:
        """Generate text from a prompt, or from the messages of a conversation.

        ::

            async for text in client.generate("Name three colours."):
                print(text, end="", flush=True)

        Args:
            prompt: text, or messages of which the last is the user's: `Message`s, or dicts as on the wire.
            schema: of the text: a JSON Schema as a dict; or a type that msgspec knows (a Struct, a dataclass, a
                TypedDict, ``list[X]``, ``Literal``), or a pydantic model, of which awaited `value()` is an instance.
            options: see `GenerateOptions`.

        Raises:
            InvalidRequestError: a message has a role or blocks that there are not.
            TypeError: an argument is of a type that cannot be sent.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost: before the first piece another one is asked, once; after it, the text might go on as another.
        """
        return AsyncGeneration(start_generate(self._core, prompt, schema=schema, **options))

    async def count_tokens(self, prompt: Prompt, **options: Unpack[CountOptions]) -> CountResult:
        """Count the tokens of a prompt, its pictures included, and whether it fits the model; nothing is inferred.

        Args:
            prompt: as for `generate`.
            options: see `CountOptions`.

        Raises:
            RequestError: the daemon refuses.
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return await run_count(self._core, start_count(self._core, prompt, **options))

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
