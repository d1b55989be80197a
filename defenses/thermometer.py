"""Thermometer encoding (Buckman et al. 2018), with the relaxations that Athalye et al. attack."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.random import OpaqueDraws
from harness.registry import defenses
from harness.types import Defense, HarnessError


def thresholds(levels: int, like: Tensor) -> Tensor:
    """Return the thresholds 0/levels, 1/levels, ..., (levels - 1)/levels as (levels, 1, 1)."""
    return (torch.arange(levels, device=like.device, dtype=like.dtype) / levels).view(-1, 1, 1)


def encode(images: Tensor, levels: int) -> Tensor:
    """Encode (N, C, H, W) in [0, 1] as (N, C * levels, H, W) of zeros and ones.

    Channel c * levels + k is one where the value of channel c exceeds k / levels. Level 0 is always
    one: a code has at least one level (Buckman et al. 2018, section 3.1), so that nothing hinges on
    x > 0.
    """
    above = images.unsqueeze(2) > thresholds(levels, images)
    above[:, :, 0] = True
    return above.to(images.dtype).flatten(1, 2)


def slide(images: Tensor, levels: int) -> Tensor:
    """Return min(max(levels * x - k + 1, 0), 1), the linear interpolation, (N, C * levels, H, W).

    This is what the released code of Athalye et al. (2018) differentiates: each value gets its
    gradient from the next level that it would switch on. The last level is not cut at 1, so that
    values above it, white pixels, keep a gradient.
    """
    height = (images.unsqueeze(2) - thresholds(levels, images)) * levels + 1.0
    last = (torch.arange(levels, device=images.device) == levels - 1).view(-1, 1, 1)
    rising = (height >= 0.0) & ((height < 1.0) | last)
    return torch.where(rising, height, (height >= 1.0).to(height)).flatten(1, 2)


def ramp(images: Tensor, levels: int) -> Tensor:
    """Return min(max(x - k / levels, 0), 1), (N, C * levels, H, W).

    The formula of Athalye et al. (2018, section 4.1.1).

    Each value gets gradients from every level that it exceeds, and from none that it could switch
    on. Level 0 passes them at x = 0 too, so that black pixels keep a gradient.
    """
    height = images.unsqueeze(2) - thresholds(levels, images)
    return torch.where(height >= 0.0, height, 0.0).flatten(1, 2)


@defenses.register("thermometer")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Thermometer(Defense):
    """Thermometer encoding of every pixel in `levels` steps, attacked through a relaxed encoding.

    The classifier receives C * levels channels. `relaxation` is the backward pass: `slide`, what
    the released code of Athalye et al. (2018) differentiates, or `ramp`, the formula in their text.
    `ramp` is the weaker attack by far: PGD-30 on MNIST at epsilon 0.1 leaves twice as many images
    standing.
    """

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "surrogate"
    differentiable: ClassVar[bool] = False

    levels: int = 16
    relaxation: Literal["slide", "ramp"] = "slide"

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise HarnessError(
                f"levels is {self.levels}: it must be from 2 to 256, the values of a pixel "
                "(-D levels=16, as in the paper)"
            )
        if self.relaxation not in ("ramp", "slide"):
            raise HarnessError(f"relaxation is {self.relaxation!r}: it must be slide or ramp")

    def output_channels(self, channels: int) -> int:
        return channels * self.levels

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return encode(images, self.levels)

    def surrogate(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        relaxed = ramp if self.relaxation == "ramp" else slide
        return relaxed(images, self.levels)
