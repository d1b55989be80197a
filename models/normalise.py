"""Normalisation as the first layer of a model, which then takes pixels in [0, 1]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from harness.types import HarnessError, number

Moments = tuple[float, ...] | None
"""One value for each channel, in [0, 1], or None for no normalisation."""

NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
    "bytes": ((0.0,), (1 / 255,)),
}
"""Usual (mean, std) by name; one value serves every channel."""


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
    """Put `network` behind `Normalise`, or behind the identity where mean and std are None.

    The network's parameters have the same names either way.

    Raises:
        HarnessError: only one of the two is given, their lengths are not the number of channels, or
            a standard deviation is not above 0.
    """
    return nn.Sequential(OrderedDict(normalise=_layer(channels, mean, std), network=network))


def moments(text: str, channels: int) -> tuple[Moments, Moments]:
    """Return the (mean, std) that a text names, one value for each channel where it gives one alone.

    Args:
        text: `inside` (no normalisation: the model takes pixels in [0, 1]), a name such as `imagenet`,
            or `0.49,0.48,0.45/0.25,0.24,0.26`.

    Raises:
        HarnessError: none of these.
    """
    if text == "inside":
        return None, None
    if text in NORMALISATIONS:
        mean, std = NORMALISATIONS[text]
    else:
        left, slash, right = text.partition("/")
        if not slash:
            raise HarnessError(
                f"normalisation {text!r}: it must be `inside` (the model takes pixels in [0, 1]), "
                f"{', '.join(NORMALISATIONS)}, or mean/std as 0.49,0.48,0.45/0.25,0.24,0.26"
            )
        mean, std = _numbers(left), _numbers(right)
    if len(mean) == 1:
        mean = mean * channels
    if len(std) == 1:
        std = std * channels
    return mean, std


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(number(part.strip()) for part in text.strip("()[] ").split(","))


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
