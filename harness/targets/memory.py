"""Limit the memory of a process, and recognise the errors of running out of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.types import HarnessError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_REFUSED = ("can't allocate memory", "bad_alloc", "not enough memory", "cannot allocate memory")


def size(text: str) -> int:
    """Return the number of bytes that a text such as `4GB`, `512M` or `1.5g` states.

    Raises:
        HarnessError: the text is no size.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kmgt]?)i?b?", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise HarnessError(f"{text!r} is not a size of memory: write 4GB or 512MB")
    return int(float(found[1]) * _UNITS[found[2]])


def limit(wanted: int, device: torch.device) -> None:
    """Limit this process to `wanted` bytes: of the GPU's memory where it uses one, else of its own.

    Raises:
        HarnessError: more is in use already, or the system has no such limit.
    """
    if device.type == "cuda":
        import torch

        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / whole), device)
        return
    try:
        import resource
        from pathlib import Path

        words = Path("/proc/self/status").read_text().split("VmData:")[1].split()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, IndexError):
        raise HarnessError("--memory on a CPU needs Linux: leave it out here") from None
    used = int(words[0]) * 1024
    if wanted <= used:
        raise HarnessError(
            f"--memory {wanted / 2**20:.0f} MB is less than what is in use before any work: "
            f"{used / 2**20:.0f} MB"
        )
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def exhausted(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, so that a smaller batch may succeed."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _REFUSED)


def ran_out(error: BaseException) -> bool:
    """Return whether an error that a guest may have raised says that memory ran out.

    Its class must be Python's or torch's own, so that reading it runs no code of the guest.
    """
    import torch

    plain = type(error) in (RuntimeError, MemoryError, torch.OutOfMemoryError)
    return plain and exhausted(error)


def release() -> None:
    """Return cached memory of the GPU to the system."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
