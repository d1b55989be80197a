"""Choose the device of a run, and keep the state of its random generators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from harness.types import HarnessError


def choose(name: str | None) -> torch.device:
    """Return the device asked for, else the GPU where there is one.

    Raises:
        HarnessError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise HarnessError(f"device {name!r} cannot be used here: {first}") from error
    return device


@contextlib.contextmanager
def generators_kept(seed: int | None = None) -> Iterator[None]:
    """Restore torch's generators, of the CPU and of every GPU, at the end of the block.

    Args:
        seed: the seed that the generators get for the block; None leaves them as they are.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
