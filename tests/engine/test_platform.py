"""MLX is fitted to the machine before it is imported, and goes without where there is nothing to fit."""

from __future__ import annotations

from typing import Any

import pytest

from vlmd_bridge.engine.platform import choose_blas, limit_memory


class Loader:
    """Stands for the dynamic linker: has the libraries named in `there`."""

    def __init__(self, *there: str) -> None:
        self.there = there
        self.tried: list[str] = []

    def __call__(self, path: str) -> object:
        self.tried.append(path)
        if not any(name in path for name in self.there):
            raise OSError(f"{path}: cannot open shared object file")
        return object()


def test_debian_library_first() -> None:
    environ: dict[str, str] = {}
    load = Loader("libopenblas.so.0")
    blas = choose_blas(3, environ, load, "linux")
    assert (blas.name, blas.threads, load.tried) == ("libopenblas.so.0", 3, ["libopenblas.so.0"])
    assert environ["OPENBLAS_NUM_THREADS"] == "3"


def test_library_of_the_opencv_wheel() -> None:
    load = Loader("opencv_python")
    blas = choose_blas(1, {}, load, "linux")
    assert "opencv_python" in blas.name and "libopenblas" in blas.name


def test_works_without() -> None:
    assert choose_blas(2, {}, Loader(), "linux").name == "reference"


def test_turned_off() -> None:
    load = Loader("libopenblas.so.0")
    assert choose_blas(2, {"VLMD_BLAS": "off"}, load, "linux").name == "reference"
    assert load.tried == []


def test_a_library_of_ones_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert choose_blas(2, {"VLMD_BLAS": "/x/libblas.so"}, Loader("/x/"), "linux").name == "/x/libblas.so"
    assert choose_blas(2, {"VLMD_BLAS": "/y/libblas.so"}, Loader("/x/"), "linux").name == "reference"
    assert "/y/libblas.so" in capfd.readouterr().err


def test_own_choice_of_threads() -> None:
    assert 1 <= choose_blas(0, {}, Loader("libopenblas.so.0"), "linux").threads <= 8


def test_macos_needs_no_library() -> None:
    load = Loader("libopenblas.so.0")
    assert choose_blas(0, {}, load, "darwin").name == "accelerate"
    assert load.tried == []


class Metal:
    """Stands for `mlx.core` on a machine that these tests do not run on."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.memory_limit: int | None = None
        self.cache_limit: int | None = None

    def device_info(self) -> dict[str, Any]:
        return self.info

    def set_memory_limit(self, limit: int) -> int:
        self.memory_limit = limit
        return 0

    def set_cache_limit(self, limit: int) -> int:
        self.cache_limit = limit
        return 0


def test_metal_memory_is_bounded() -> None:
    metal = Metal({"max_recommended_working_set_size": 10_000_000_000})
    limit_memory(metal)
    assert (metal.memory_limit, metal.cache_limit) == (9_000_000_000, 1_000_000_000)
    metal = Metal({"max_recommended_working_set_size": 100_000_000_000})
    limit_memory(metal)
    assert metal.cache_limit == 2 * 1024**3


def test_cpu_memory_is_left_alone() -> None:
    cpu = Metal({"architecture": "x86_64", "device_name": "cpu"})
    limit_memory(cpu)
    assert cpu.memory_limit is None and cpu.cache_limit is None
