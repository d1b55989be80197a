"""PixelDefend (Song et al. 2018): move each image to where a density model finds it likely."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.models.pixelcnn import LEVELS, Decoder, GatedPixelCNN, to_levels
from harness.random import OpaqueDraws
from harness.registry import defenses
from harness.types import Defense, HarnessError


@torch.no_grad()
def purify(network: GatedPixelCNN, images: Tensor, radius: int, *, chunk: int = 0) -> Tensor:
    """Purify (N, C, H, W) in [0, 1] greedily (Song et al. 2018, algorithm 1); the shape stays.

    In raster order, channel by channel, every value becomes the likeliest one, given what was
    decided before it, within `radius` of the 256 levels around the (rounded) original; the lowest
    where several are.
    """
    count, channels, height, width = images.shape
    chunk = chunk or (128 if images.device.type == "cpu" else 4096)
    if count > chunk:
        parts = (images[start : start + chunk] for start in range(0, count, chunk))
        return torch.cat([purify(network, part, radius, chunk=chunk) for part in parts])
    levels = to_levels(images)
    decoder = Decoder(network, count, height, width)
    window = torch.arange(-radius, radius + 1, device=images.device)
    for row in range(height):
        for column in range(width):
            parameters = decoder.parameters(row, column)
            pixel = levels[:, :, row, column]
            for channel in range(channels):
                allowed = (pixel[:, channel, None] + window).clamp(0, LEVELS - 1)
                known = pixel[:, :channel]
                pixel[:, channel] = network.likeliest(parameters, channel, known, allowed)
            decoder.fix(row, column, pixel)
    return levels.to(images.dtype) / (LEVELS - 1)


@defenses.register("pixeldefend")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelDefend(Defense):
    """Greedy likelihood ascent in an epsilon ball under a gated PixelCNN that the harness trains.

    `purify_epsilon` is the ball's radius in pixel values: 16/255 for CIFAR-10 and 32/255 for
    Fashion-MNIST in the paper; -D purify_epsilon=0.3 for MNIST. `features`, `layers` and `mixtures`
    size the density model, far smaller than the paper's PixelCNN++. Its loss is the negative
    log-likelihood in bits per dimension.
    """

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "identity"
    differentiable: ClassVar[bool] = False

    purify_epsilon: float = 16 / 255
    features: int = 24
    layers: int = 4
    mixtures: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.purify_epsilon <= 1:
            raise HarnessError(
                f"purify_epsilon is {self.purify_epsilon}: it must be from 0 to 1, in pixel values "
                "(-D purify_epsilon=16/255)"
            )
        for name in ("features", "layers", "mixtures"):
            if getattr(self, name) < 1:
                raise HarnessError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    @property
    def radius(self) -> int:
        """The radius of the ball in grey levels; a rounded 16/255 is 16."""
        return int(self.purify_epsilon * (LEVELS - 1) + 1e-3)

    def auxiliary_module(self, shape: tuple[int, int, int]) -> nn.Module | None:
        return GatedPixelCNN(
            shape[0], features=self.features, layers=self.layers, mixtures=self.mixtures
        )

    def auxiliary_loss(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return the negative log-likelihood (N,), in bits per dimension."""
        return _density(module).bits_per_dimension(images)

    def auxiliary_plan(self) -> Mapping[str, Any]:
        return {"epochs": 5, "batch_size": 64, "optimiser": "adam", "learning_rate": 1e-3}

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return purify(_density(auxiliary), images, self.radius)

    def training_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        version: int | None = None,
    ) -> Tensor:
        """Return the images unchanged: the classifier behind PixelDefend is an unmodified one."""
        return images


def _density(module: nn.Module | None) -> GatedPixelCNN:
    if not isinstance(module, GatedPixelCNN):
        given = "nothing" if module is None else type(module).__name__
        raise HarnessError(
            f"pixeldefend was given {given} for its density model: it needs what its "
            "auxiliary_module builds, trained (`harness run` trains it)"
        )
    return module
