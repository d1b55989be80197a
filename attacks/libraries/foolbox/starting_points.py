"""Misclassified images from which decision-based attacks start.

foolbox raises for the whole batch where one image finds none. Here an image without one is left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.random import Draws, Role
from harness.types import Batch

DIRECTIONS = 50
"""Draws of uniform noise that are tried for each image."""
HALVINGS = 10
"""Steps of the search on the line from the image to its start."""


def find(model: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return where a start was found, (N,) bool, and the starts (N, C, H, W).

    An image that is misclassified as it stands is its own start, at distance zero. Otherwise the start
    is the nearer of uniform noise and the nearest image of the batch with another predicted class, each
    drawn towards the image as far as it stays misclassified. Costs about 70 queries an image.
    """
    images, labels = batch.images, batch.labels
    predicted = model(images).argmax(dim=1)
    wrong = predicted != labels
    best = images.clone()
    distance = torch.where(wrong, 0.0, torch.inf)
    open_ = ~wrong

    distances = torch.cdist(images.flatten(1), images.flatten(1))
    distances[predicted[None, :] == labels[:, None]] = torch.inf
    nearest = distances.min(dim=1)
    has_other = open_ & torch.isfinite(nearest.values)
    others = images[nearest.indices]
    noise, has_noise = _noise(model, batch, draws, open_)

    for candidate, exists in ((others, has_other), (noise, has_noise)):
        if not bool(exists.any()):
            continue
        # The query itself decides: a randomised victim may see the candidate differently now.
        exists = exists & (model(candidate).argmax(dim=1) != labels)
        closer = _approach(model, images, labels, candidate)
        length = (closer - images).flatten(1).norm(dim=1)
        better = exists & (length < distance)
        best = torch.where(_wide(better), closer, best)
        distance = torch.where(better, length, distance)
    return torch.isfinite(distance), best


def _noise(model: nn.Module, batch: Batch, draws: Draws, open_: Tensor) -> tuple[Tensor, Tensor]:
    """Return uniform noise that is misclassified, and where some was found."""
    found = torch.zeros_like(open_)
    noise = batch.images.clone()
    place = draws.at(role=Role.START)
    for number in range(DIRECTIONS):
        if not bool((open_ & ~found).any()):
            break
        drawn = place.at(draw=number).uniform(*batch.images.shape[1:], lane="start")
        drawn = drawn.to(batch.images)
        new = ~found & (model(drawn).argmax(dim=1) != batch.labels)
        noise = torch.where(_wide(new), drawn, noise)
        found = found | new
    return noise, found & open_


def _approach(model: nn.Module, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """Return the misclassified point on the line from the start towards the image, by bisection."""
    near = torch.zeros(len(images), device=images.device)
    far = torch.ones_like(near)
    best = start
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        point = (images + (start - images) * _wide(middle)).clamp(0.0, 1.0)
        fooled = model(point).argmax(dim=1) != labels
        best = torch.where(_wide(fooled), point, best)
        far = torch.where(fooled, middle, far)
        near = torch.where(fooled, near, middle)
    return best


def _wide(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
