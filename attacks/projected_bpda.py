"""The second adaptive attack of the ME-Net paper (Yang et al. 2019, section 3.4)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from harness.attacks.parameters import at_least_one
from harness.attacks.projected_gradient import Keep, ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Backward, Batch, Perturbed, ThreatModel, Victim


@attacks.register("projected-bpda")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedBPDA(ProjectedGradient):
    """BPDA whose gradients are projected onto the span of the image's top singular vectors.

    "... projects the gradient to the low-rank space constructed by the top few singular vectors of
    the original image, to construct the adversarial noise". The paper does not say how many.
    """

    adaptive: ClassVar[bool] = True

    backward: Backward = "declared"
    keep: Keep = "last"
    rank: int = 5
    """Singular vectors on each side; more than there are means all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("rank", self.rank)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return perturbed images, in the ball and the box."""
        if not len(batch):
            return Perturbed(batch.images)
        left, right = structure(batch.images, self.rank)

        def direction(gradient: Tensor, positions: Tensor) -> Tensor:
            return project_onto(gradient, left[positions], right[positions])

        return ascend(self, victim, batch, threat, draws, direction=direction)


def structure(images: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the top left (N, H, rank) and right (N, C * W, rank) singular vectors of each image's matrix."""
    left, _, right = torch.linalg.svd(_matrix(images), full_matrices=False)
    return left[:, :, :rank], right.mT[:, :, :rank]


def project_onto(images: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return U U^T G V V^T for every image G (N, C, H, W), U and V with orthonormal columns."""
    core = left.mT @ _matrix(images) @ right
    count, channels, height, width = images.shape
    matrix = left @ core @ right.mT
    return matrix.reshape(count, height, channels, width).transpose(1, 2)


def _matrix(images: Tensor) -> Tensor:
    """Reshape (N, C, H, W) to (N, H, C * W): the channels side by side, as ME-Net's `concat`."""
    return images.transpose(1, 2).flatten(2)
