"""Client of vlmd, the vision-language daemon.

::

    import vlmd

    with vlmd.Client("demo") as client:
        for batch in client.describe(["a.png", "b.png"]):
            for frame in batch.results:
                print(frame.index, frame.description)

Names are imported when they are first used: `import vlmd` itself costs a host app nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` itself would be half the cost of this import
if TYPE_CHECKING:
    from vlmd._async_client import AsyncBatches, AsyncClient
    from vlmd._images import Image, ImageLike
    from vlmd._options import ClientOptions, DescribeOptions
    from vlmd._results import Batch, Frame, Progress
    from vlmd._sync_client import Batches, Client
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

__all__ = [
    "AsyncBatches",
    "AsyncClient",
    "Batch",
    "Batches",
    "BusyError",
    "CancelledError_",
    "Client",
    "ClientOptions",
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "CrashLoopError",
    "DaemonError",
    "DaemonNotFoundError",
    "DeadlineError",
    "DescribeOptions",
    "EngineUnavailableError",
    "Frame",
    "Image",
    "ImageLike",
    "InternalError",
    "InvalidRequestError",
    "ModelError",
    "Progress",
    "ProtocolError",
    "RequestError",
    "ShuttingDownError",
    "StartError",
    "Timeouts",
    "UnsafeSocketError",
    "VlmdError",
    "__version__",
]

_HOMES = {
    "AsyncBatches": "vlmd._async_client",
    "AsyncClient": "vlmd._async_client",
    "Batch": "vlmd._results",
    "Batches": "vlmd._sync_client",
    "Client": "vlmd._sync_client",
    "ClientOptions": "vlmd._options",
    "DescribeOptions": "vlmd._options",
    "Frame": "vlmd._results",
    "Image": "vlmd._images",
    "ImageLike": "vlmd._images",
    "Progress": "vlmd._results",
    "Timeouts": "vlmd._timeouts",
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
