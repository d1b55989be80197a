"""Simultaneous perturbation stochastic approximation (Spall 1992; Uesato et al. 2018)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from harness.attacks.losses import LOSSES, LossName, against
from harness.attacks.parameters import at_least_one, one_of, positive
from harness.geometry import project
from harness.random import Draws
from harness.registry import attacks
from harness.types import (
    Access,
    Attack,
    Batch,
    HarnessError,
    Norm,
    Perturbed,
    ThreatModel,
    Victim,
)

_MEAN_DECAY, _SQUARE_DECAY, _STABILITY = 0.9, 0.999, 1e-8
"""Adam's beta_1, beta_2 and epsilon (Kingma and Ba 2015)."""


@attacks.register("spsa")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """Adam steps on gradients estimated from scores at random pairs of points (Uesato et al. 2018).

    A deterministic victim's images leave once they are misclassified (not in `transfer`); against a
    randomised one every step is made, and the last iterate returned.
    """

    access: ClassVar[Access] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: int = 100
    samples: int = 2048
    """Scores behind one gradient, half of them at x + delta v and half at x - delta v."""
    learning_rate: float = 0.01
    """Adam's, in pixel values."""
    delta: float = 0.01
    """Distance of a sample from the image in each pixel. Samples are not clipped to the box."""
    loss: LossName = "margin"
    eot: int = 1
    """Draws of the defense's randomness that a step's pairs are spread over; a pair shares one."""
    early_stop: bool = True
    """True to let an image of a deterministic victim leave once it is misclassified."""
    chunk: int | None = None
    """Images per forward, a bound on memory that changes rounding and nothing else. None: 128 on a
    CPU, whose cache they should fit, and 4096 on a GPU."""

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "eot"):
            at_least_one(name, getattr(self, name))
        if self.chunk is not None:
            at_least_one("chunk", self.chunk)
        positive("learning_rate", self.learning_rate)
        positive("delta", self.delta)
        one_of("loss", self.loss, tuple(LOSSES))
        if self.samples % (2 * self.eot):
            raise HarnessError(
                f"samples is {self.samples}: it must be a multiple of {2 * self.eot}, "
                "for pairs of samples on each of the eot draws"
            )

    @property
    def passes(self) -> int:
        """Queries for each image: the samples, and one at the iterate itself in each step."""
        return self.steps * (self.samples + 1)

    def on_source(self) -> SPSA:
        """Return the attack without its early stop."""
        return dataclasses.replace(self, early_stop=False)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        x, result = batch.images, batch.images.clone()
        images, labels = batch.images, batch.labels
        active = torch.arange(len(batch), device=x.device)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for number in range(self.steps):
            place = draws.at(step=number)
            if self.early_stop and not victim.randomised and len(active):
                right = victim.logits(x, place).argmax(dim=1) == labels
                left = right.nonzero().squeeze(1)
                if len(left) < len(active):
                    result[active] = x
                    active, x, images, labels = active[left], x[left], images[left], labels[left]
                    mean, square = mean[left], square[left]
                    draws, place = draws[left], place[left]
            if not len(active):
                break
            gradient = self.estimate(victim, x, labels, place)
            mean = mean.lerp(gradient, 1 - _MEAN_DECAY)
            square = square.lerp(gradient.square(), 1 - _SQUARE_DECAY)
            unbiased = mean / (1 - _MEAN_DECAY ** (number + 1))
            scale = (square / (1 - _SQUARE_DECAY ** (number + 1))).sqrt() + _STABILITY
            x = project(x + self.learning_rate * unbiased / scale, images, threat)
        result[active] = x
        return Perturbed(result)

    def estimate(self, victim: Victim, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Estimate the gradient (N, C, H, W) of the loss J from scores.

        It is the mean over random v of +-1 of v (J(x + delta v) - J(x - delta v)) / (2 delta).
        """
        gradient = torch.empty_like(images)
        chunk = self.chunk or (128 if images.device.type == "cpu" else 4096)
        group = max(1, chunk // self.samples)
        for first in range(0, len(images), group):
            some = slice(first, first + group)
            x, here = images[some].flatten(1), draws[some]
            signs = rademacher(here, self.samples // 2, x.shape[1]).to(x)
            total = torch.zeros_like(x)
            for draw, pairs in self._slices(chunk):
                v = signs[:, pairs]
                points = torch.stack((x[:, None] + self.delta * v, x[:, None] - self.delta * v), 1)
                rows = torch.arange(len(x), device=x.device).repeat_interleave(2 * v.shape[1])
                logits = victim.logits(
                    points.reshape(-1, *images.shape[1:]),
                    here[rows].at(draw=here.draw * self.eot + draw),
                )
                value = against(self.loss, labels[some][rows])(logits).to(x)
                ahead, behind = value.reshape(len(x), 2, -1).unbind(dim=1)
                total += torch.bmm((ahead - behind)[:, None], v).squeeze(1)
            gradient[some] = (total / (self.delta * self.samples)).reshape(-1, *images.shape[1:])
        return gradient

    def _slices(self, chunk: int) -> Iterator[tuple[int, slice]]:
        """Yield (draw, pairs): an image's pairs, cut by draw and by what fits into one forward."""
        each, most = self.samples // 2 // self.eot, max(1, chunk // 2)
        for draw in range(self.eot):
            for first in range(0, each, most):
                begin = draw * each + first
                yield draw, slice(begin, min(begin + most, (draw + 1) * each))


def rademacher(draws: Draws, *shape: int) -> Tensor:
    """Return (N, *shape) float32 of -1 and +1 with equal probability, 64 from each random word."""
    count = math.prod(shape)
    octets = draws.bits((count + 63) // 64, lane="rademacher").view(torch.uint8)
    places = torch.arange(8, device=octets.device)
    bits = (torch.arange(256, device=octets.device)[:, None] >> places) & 1
    table = bits.float() * 2.0 - 1.0  # the eight signs in each octet
    signs = table[octets.flatten().int()].reshape(len(draws), -1)
    return signs[:, :count].reshape(len(draws), *shape)
