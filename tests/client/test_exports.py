"""What `import vlmd` offers and what it costs."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vlmd
from tests.support.fake_server import FakeServer
from vlmd._log import ClientLog
from vlmd_protocol import errors

# What a host app pays on top of a bare interpreter, at most; a generous multiple of what was measured.
IMPORT_BUDGET_MS = 60
FOREIGN = ("mlx", "mlx_vlm", "transformers", "PIL", "numpy", "anyio", "asyncio", "msgspec", "rich")

NAMES = {
    *("AsyncBatches", "AsyncClient", "Batch", "Batches", "Client", "ClientOptions", "DescribeOptions", "Frame"),
    *("AsyncGeneration", "CountOptions", "CountResult", "Delta", "GenerateOptions", "GenerateResult", "Generation"),
    *("Image", "ImageLike", "Message", "MessageLike", "Progress", "Text", "Timeouts", "Usage", "__version__"),
}
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}


def test_the_exported_names() -> None:
    assert set(vlmd.__all__) == NAMES | ERRORS
    assert vlmd.__all__ == sorted(vlmd.__all__)
    assert dir(vlmd) == vlmd.__all__
    for name in vlmd.__all__:
        assert getattr(vlmd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        vlmd.Clinet  # noqa: B018


def test_star_import_and_version() -> None:
    namespace: dict[str, object] = {}
    exec("from vlmd import *", namespace)
    assert namespace["Client"] is vlmd.Client
    assert vlmd.__version__.count(".") == 2


def cost_ms(code: str) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        best = min(best, time.perf_counter() - started)
    return best * 1000


def test_the_import_is_cheap() -> None:
    bare = cost_ms("pass")
    package = cost_ms("import vlmd") - bare
    client = cost_ms("from vlmd import Client") - bare
    print(f"over a bare interpreter ({bare:.1f} ms): import vlmd {package:.1f} ms, and Client {client:.1f} ms")
    assert package < IMPORT_BUDGET_MS


def test_the_import_loads_nothing_foreign() -> None:
    subprocess.run(
        [sys.executable, "-c", f"import sys, vlmd; assert not set({FOREIGN}) & set(sys.modules)"], check=True
    )
    heavy = set(FOREIGN) - {"msgspec"}
    code = f"import sys, vlmd; vlmd.Client; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlmd.client"):
        ClientLog(None)("Started 100%")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("vlmd.client", "[VLM] Started 100%")]


def test_a_log_hook_that_fails_is_reported_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    def hook(line: str) -> None:
        raise ZeroDivisionError(line)

    ClientLog(hook)("x")
    assert "log hook raised" in caplog.text


def test_an_idle_client_keeps_no_interpreter_alive(serve: Callable[..., FakeServer], folder: Path) -> None:
    serve()
    code = f"import vlmd; client = vlmd.Client(socket={str(folder / 's')!r}); client.ping()"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=10)
    assert time.monotonic() - started < 5
