"""The client for code without an event loop."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal, Unpack, overload

from vlmd._blocking import BlockingRuntime, run
from vlmd._core import ClientCore
from vlmd._generate import run_count
from vlmd._generate_options import CountOptions, GenerateOptions, start_count, start_generate
from vlmd._images import ImageLike
from vlmd._options import ClientOptions, DescribeOptions, start_run
from vlmd._prompt import Prompt
from vlmd._results import Frame
from vlmd._settings import resolve
from vlmd._sync_batches import Batches
from vlmd._sync_generation import Generation
from vlmd._types import Value
from vlmd_protocol.messages import CacheResult, CountResult, HelloResult, PingResult, ShutdownResult, StatusResult


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

    def cache(self, action: Literal["info", "clear"] = "info") -> CacheResult:
        """Return what the daemon's result store holds; ``clear`` removes everything in it first.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.cache(action))

    def shutdown(self) -> ShutdownResult:
        """Tell the daemon, a shared one too, to drain and end. A later call starts another.

        Raises:
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(self._core.shutdown())

    @overload
    def describe(
        self, images: Iterable[ImageLike], *, schema: None = None, **options: Unpack[DescribeOptions]
    ) -> Batches[None]: ...

    @overload
    def describe(
        self, images: Iterable[ImageLike], *, schema: type[Value], **options: Unpack[DescribeOptions]
    ) -> Batches[Value]: ...

    @overload
    def describe(
        self, images: Iterable[ImageLike], *, schema: object, **options: Unpack[DescribeOptions]
    ) -> Batches[Any]: ...

    def describe(
        self, images: Iterable[ImageLike], *, schema: object = None, **options: Unpack[DescribeOptions]
    ) -> Batches[Any]:
        """Describe images and return their batches as they come.

        Args:
            images: paths, ``(path, timestamp)`` pairs or `Image`s; any iterable, also an endless one: it is read, on
                the caller's thread, only a few hundred frames ahead of the batches that are taken.
            schema: of each frame's `record`: a JSON Schema, or a type of which each frame's `value` is an instance;
                see `generate`.
            options: see `DescribeOptions`.

        Raises:
            InvalidRequestError: the batch size is out of bounds.
            TypeError: `images` is a single image, or `schema` is none.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost and could not be had back.
        """
        return Batches(self, start_run(self._core, images, schema=schema, **options))

    @overload
    def describe_all(
        self, images: Iterable[ImageLike], *, schema: None = None, **options: Unpack[DescribeOptions]
    ) -> list[Frame[None]]: ...

    @overload
    def describe_all(
        self, images: Iterable[ImageLike], *, schema: type[Value], **options: Unpack[DescribeOptions]
    ) -> list[Frame[Value]]: ...

    @overload
    def describe_all(
        self, images: Iterable[ImageLike], *, schema: object, **options: Unpack[DescribeOptions]
    ) -> list[Frame[Any]]: ...

    def describe_all(
        self, images: Iterable[ImageLike], *, schema: object = None, **options: Unpack[DescribeOptions]
    ) -> list[Frame[Any]]:
        """Describe images and return all their frames, in order; see `describe`."""
        return [frame for batch in self.describe(images, schema=schema, **options) for frame in batch.results]

    @overload
    def generate(
        self, prompt: Prompt, *, schema: None = None, **options: Unpack[GenerateOptions]
    ) -> Generation[None]: ...

    @overload
    def generate(
        self, prompt: Prompt, *, schema: type[Value], **options: Unpack[GenerateOptions]
    ) -> Generation[Value]: ...

    @overload
    def generate(self, prompt: Prompt, *, schema: object, **options: Unpack[GenerateOptions]) -> Generation[Any]: ...

    def generate(self, prompt: Prompt, *, schema: object = None, **options: Unpack[GenerateOptions]) -> Generation[Any]:
        """Generate text from a prompt, or from the messages of a conversation.

        ::

            for text in client.generate("Name three colours."):
                print(text, end="", flush=True)

        Args:
            prompt: text, or messages of which the last is the user's: `Message`s, or dicts as on the wire.
            schema: of the text: a JSON Schema as a dict; or a type that msgspec knows (a Struct, a dataclass, a
                TypedDict, ``list[X]``, ``Literal``), or a pydantic model, of which `value()` is an instance.
            options: see `GenerateOptions`.

        Raises:
            InvalidRequestError: a message has a role or blocks that there are not.
            TypeError: an argument is of a type that cannot be sent.

        The iterator raises `RequestError` where the daemon refuses, `DeadlineError`, and `DaemonError` where the
        daemon was lost: before the first piece another one is asked, once; after it, the text might go on as another.
        """
        return Generation(self, start_generate(self._core, prompt, schema=schema, **options))

    def count_tokens(self, prompt: Prompt, **options: Unpack[CountOptions]) -> CountResult:
        """Count the tokens of a prompt, its pictures included, and whether it fits the model; nothing is inferred.

        Args:
            prompt: as for `generate`.
            options: see `CountOptions`.

        Raises:
            RequestError: the daemon refuses.
            DaemonError: there is no usable daemon.
            DeadlineError: it does not answer in time.
        """
        return run(run_count(self._core, start_count(self._core, prompt, **options)))

    def close(self) -> None:
        """End the connection, and a private daemon with it; who still waits gets `ClosedError`."""
        run(self._core.close())
        self._finalizer.detach()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
