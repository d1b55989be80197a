"""Normalisation as the first layer, so that everything outside a model sees pixels in [0, 1]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.types import HarnessError

Moments = tuple[float, ...] | None
"""One value for each channel, in [0, 1], or None for no normalisation."""


class Normalise(nn.Module):
    """(x - mean) / std by channel, (N, C, H, W). Both are buffers: saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def normalised(network: nn.Module, channels: int, mean: Moments, std: Moments) -> nn.Sequential:
    """`network` behind `Normalise`, or behind the identity where mean and std are None.

    The network's parameters have the same names either way.

    Raises:
        HarnessError: only one of the two is given, their lengths are not the number of channels, or
            a standard deviation is not above 0.
    """
    return nn.Sequential(OrderedDict(normalise=_layer(channels, mean, std), network=network))


def _layer(channels: int, mean: Moments, std: Moments) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise HarnessError("mean and std belong together: give both, or neither")
    if len(mean) != channels or len(std) != channels:
        raise HarnessError(
            f"mean has {len(mean)} values and std {len(std)}: "
            f"the model receives {channels} channels, so each needs that many"
        )
    if not all(value > 0 for value in std):
        raise HarnessError(f"std is {list(std)}: every value must be above 0")
    return Normalise(mean, std)
