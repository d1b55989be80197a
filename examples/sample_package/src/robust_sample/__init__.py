"""An attack, a defense, a model and a dataset of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.datasets.data import Samples
from harness.geometry import project
from harness.random import Draws, OpaqueDraws
from harness.types import Access, Attack, Batch, Defense, Perturbed, ThreatModel, Victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSigns(Attack):
    """Random search among corners of the ball: the first that is misclassified is kept."""

    access: ClassVar[Access] = "labels"

    tries: int = 10

    @property
    def passes(self) -> int:
        return self.tries

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        found = batch.images
        open_ = torch.ones(len(batch), dtype=torch.bool, device=found.device)
        for number in range(self.tries):
            place = draws.at(step=number)
            signs = place.bernoulli(0.5, *batch.images.shape[1:]).to(found) * 2 - 1
            corner = project(batch.images + threat.epsilon * signs, batch.images, threat)
            found = torch.where(open_.reshape(-1, 1, 1, 1), corner, found)
            open_ &= victim.labels(found, place) == batch.labels
        return Perturbed(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Defense):
    """Random mirroring: each image is flipped with probability one half."""

    randomised: ClassVar[bool] = True

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        heads = draws.bernoulli(0.5, 1, 1, 1)
        return torch.where(heads, images.flip(3), images)


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a model of one linear layer."""
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def stripes(split: str, folder: Path, *, count: int = 200) -> Samples:
    """Draw images of 12 x 12: rows, columns and flat grey."""
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    labels = torch.arange(count) % 3
    waves = torch.rand(count, 12, 1, generator=generator).expand(-1, -1, 12)
    images = torch.stack([waves, waves.transpose(1, 2), torch.full_like(waves, 0.5)], dim=1)
    chosen = images[torch.arange(count), labels]
    noise = 0.05 * torch.rand(chosen.shape, generator=generator)
    pixels = ((0.9 * chosen + noise) * 255).to(torch.uint8)[:, None]
    return Samples(images=pixels, labels=labels, classes=("rows", "columns", "flat"))
