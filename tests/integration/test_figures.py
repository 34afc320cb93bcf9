"""What a host app pays: import time, memory of the daemon, and modules that must not be there. Prints its figures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import StartDaemon

HEAVY = ("mlx", "mlx_vlm", "mlx_lm", "transformers", "PIL", "numpy", "rich", "torch")


def _modules(code: str) -> set[str]:
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_neither_client_nor_daemon_imports_a_model_library() -> None:
    for code in (
        "import vlmd; vlmd.Client; vlmd.AsyncClient",
        "import vlmd_bridge.cli.main, vlmd_bridge.cli.serve, vlmd_bridge.daemon.main",
    ):
        assert not {module for module in _modules(code) if module.partition(".")[0] in HEAVY}


def test_import_vlmd_costs_under_60_ms_over_a_bare_interpreter() -> None:
    def took_s(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
        return time.perf_counter() - start

    pairs = [(took_s("import vlmd"), took_s("pass")) for _ in range(10)]
    over_ms = statistics.median(ours - bare for ours, bare in pairs) * 1000
    print(f"\nimport vlmd: {over_ms:.1f} ms over a bare interpreter, median of {len(pairs)}")
    assert over_ms < 60


def test_the_daemon_holds_under_60_mb(start_daemon: StartDaemon, pictures: list[str]) -> None:
    daemon = start_daemon().wait_ready()
    daemon.ask("describe_images", images=[{"imagePath": path} for path in pictures])
    memory_mb = psutil.Process(daemon.process.pid).memory_info().rss / 1e6
    print(f"\ndaemon: {memory_mb:.1f} MB resident after {len(pictures)} frames")
    assert memory_mb < 60


def test_no_model_library_is_mapped_into_the_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_ready()
    maps = Path(f"/proc/{daemon.process.pid}/maps")
    if not maps.exists():  # macOS: the module test above stands alone
        return
    mapped = maps.read_text()
    assert not [name for name in ("libmlx", "libopenblas", "_imaging", "_multiarray") if name in mapped]
