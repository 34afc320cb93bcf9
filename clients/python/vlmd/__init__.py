"""Client of vlmd, the vision-language daemon.

::

    import vlmd

    with vlmd.Client("demo") as client:
        for batch in client.describe(["a.png", "b.png"]):
            for frame in batch.results:
                print(frame.index, frame.description)
        for text in client.generate("Describe the first in a sentence.", images=["a.png"]):
            print(text, end="")

Names are imported when they are first used: `import vlmd` itself costs a host app nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` itself would be half the cost of this import
if TYPE_CHECKING:
    from vlmd._async_batches import AsyncBatches
    from vlmd._async_client import AsyncClient
    from vlmd._async_generation import AsyncGeneration
    from vlmd._generate_options import CountOptions, GenerateOptions
    from vlmd._images import Image, ImageLike
    from vlmd._options import ClientOptions, DescribeOptions
    from vlmd._prompt import Message, MessageLike, Text
    from vlmd._results import Batch, Delta, Frame, GenerateResult, Progress
    from vlmd._sync_batches import Batches
    from vlmd._sync_client import Client
    from vlmd._sync_generation import Generation
    from vlmd._timeouts import Timeouts
    from vlmd_bridge import __version__
    from vlmd_protocol.errors import (
        BusyError,
        CancelledError_,
        ClosedError,
        ConnectError,
        ConnectionLostError,
        CrashLoopError,
        DaemonError,
        DaemonNotFoundError,
        DeadlineError,
        EngineUnavailableError,
        InternalError,
        InvalidRequestError,
        ModelError,
        ProtocolError,
        RequestError,
        ShuttingDownError,
        StartError,
        UnsafeSocketError,
        VlmdError,
    )
    from vlmd_protocol.messages import CountResult, Usage

__all__ = [
    "AsyncBatches",
    "AsyncClient",
    "AsyncGeneration",
    "Batch",
    "Batches",
    "BusyError",
    "CancelledError_",
    "Client",
    "ClientOptions",
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "CountOptions",
    "CountResult",
    "CrashLoopError",
    "DaemonError",
    "DaemonNotFoundError",
    "DeadlineError",
    "Delta",
    "DescribeOptions",
    "EngineUnavailableError",
    "Frame",
    "GenerateOptions",
    "GenerateResult",
    "Generation",
    "Image",
    "ImageLike",
    "InternalError",
    "InvalidRequestError",
    "Message",
    "MessageLike",
    "ModelError",
    "Progress",
    "ProtocolError",
    "RequestError",
    "ShuttingDownError",
    "StartError",
    "Text",
    "Timeouts",
    "UnsafeSocketError",
    "Usage",
    "VlmdError",
    "__version__",
]

_HOMES = {
    "AsyncBatches": "vlmd._async_batches",
    "AsyncClient": "vlmd._async_client",
    "AsyncGeneration": "vlmd._async_generation",
    "Batch": "vlmd._results",
    "Batches": "vlmd._sync_batches",
    "Client": "vlmd._sync_client",
    "ClientOptions": "vlmd._options",
    "CountOptions": "vlmd._generate_options",
    "CountResult": "vlmd_protocol.messages",
    "Delta": "vlmd._results",
    "DescribeOptions": "vlmd._options",
    "Frame": "vlmd._results",
    "GenerateOptions": "vlmd._generate_options",
    "GenerateResult": "vlmd._results",
    "Generation": "vlmd._sync_generation",
    "Image": "vlmd._images",
    "ImageLike": "vlmd._images",
    "Message": "vlmd._prompt",
    "MessageLike": "vlmd._prompt",
    "Progress": "vlmd._results",
    "Text": "vlmd._prompt",
    "Timeouts": "vlmd._timeouts",
    "Usage": "vlmd_protocol.messages",
    "__version__": "vlmd_bridge",
}


def __getattr__(name: str) -> object:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'vlmd' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "vlmd_protocol.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
