"""What the bench needs of the machine: peers' environments, a BLAS to preload, versions to name."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark.contender import SCRIPTS
from benchmark.servers import Server, vllm_mlx_server
from vlmd_bridge.machine import cores

# vllm-mlx and what it needs beside our own packages, pinned. Not torch and gradio, which its package also asks for:
# gigabytes that its server does not use (its speed is the same with them).
_REQUIREMENTS = SCRIPTS.parent / "requirements" / "vllm-mlx.txt"

_INSTALL_S = 600


def vllm_mlx(folder: Path, absent: list[str], say: Callable[[str], None]) -> Server | None:
    """Return vllm-mlx, installed in a virtual environment of its own in `folder`; None where it cannot be.

    Behind its own packages the environment sees those of this interpreter: the same MLX for all.
    """
    stamp = folder / "installed"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        say("installing vllm-mlx in an environment of its own …")
        python = folder / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-qq", "--no-deps"]
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "runtime.pth").write_text(sysconfig.get_path("purelib") + "\n")
            _run([*install, "--only-binary", ":all:", "-r", str(_REQUIREMENTS)])
        except (OSError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
            absent.append(f"vllm-mlx is left out, it cannot be installed here: {lines[-1] if lines else error}")
            say(absent[-1])
            return None
        stamp.write_text(wanted)
    return vllm_mlx_server(folder)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)


def preloadable_blas(engine_blas: str, absent: list[str]) -> str | None:
    """Return the path of the OpenBLAS that vlmd's engine uses, for the peers; None where there is none."""
    if engine_blas in ("reference", "accelerate"):
        absent.append(f"vlmd's BLAS here is {engine_blas}: there is nothing to preload into the others")
        return None
    return engine_blas


def own_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a daemon that sees no settings of the user's and keeps what it stores in `folder`."""
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    config = home / "config.toml"
    config.touch()
    return {"VLMD_CONFIG": str(config), "VLMD_CACHE_FILE": str(home / "results.sqlite")}


def facts() -> dict[str, str]:
    """Return what a figure depends on."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["processor"] = _processor()
    found["cores"] = str(cores())
    found["load"] = f"{os.getloadavg()[0]:.1f}"
    for package in ("mlx", "mlx-vlm", "pillow", "llguidance"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for line in _REQUIREMENTS.read_text().splitlines():
        name, _, number = line.partition("==")
        if name == "vllm-mlx":
            found[name] = number
    revision = subprocess.run(
        ["git", "-C", str(SCRIPTS), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    found["revision"] = revision.stdout.strip() or "unknown"
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
