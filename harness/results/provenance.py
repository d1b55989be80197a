"""State the commit, library versions and device with which a record was made."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import harness


@functools.cache
def commit() -> str:
    """Return the commit of the harness's checkout, with `+` where files differ; `installed` for a wheel."""
    folder = Path(__file__).parent
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(
            folder, "status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.toml"
        )
    except (OSError, subprocess.SubprocessError):
        return "installed"
    return revision + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, the harness, and the libraries that compute or attack."""
    found = {"python": platform.python_version(), "harness": harness.__version__}
    guests = ("foolbox", "torchattacks", "adversarial-robustness-toolbox", "pyautoattack")
    for package in ("torch", "torchvision", "numpy", *guests):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def made(device: str, threads: int) -> dict[str, str]:
    """Return the provenance that a record states: commit, device, threads and versions."""
    import torch

    name = device
    if device.startswith("cuda"):
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return {"commit": commit(), "device": name, "threads": str(threads), **versions()}
