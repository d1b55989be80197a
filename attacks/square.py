"""Square Attack (Andriushchenko et al. 2020): random search with square-shaped changes."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from harness.attacks.losses import LOSSES, LossName, against
from harness.attacks.parameters import at_least_one, one_of
from harness.geometry import project
from harness.random import Draws
from harness.registry import attacks
from harness.types import Access, Attack, Batch, HarnessError, Perturbed, ThreatModel, Victim

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Where the changed share halves, in a search of 10,000 queries; other lengths are scaled."""


@attacks.register("square")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search: sets squares to +-epsilon and keeps what raises the loss (L-infinity).

    A deterministic victim's images leave once they are misclassified, but not in `transfer`. Against a
    randomised one the image and its change are compared on the same draw, anew at each step, for two
    queries: a lucky draw of the past does not hold the search up. Squares lie anywhere in the image; those
    of the reference code, in AutoAttack and torchattacks, never touch its last row and column.
    """

    access: ClassVar[Access] = "scores"

    queries: int = 5000
    """Scores for each image at most."""
    share: float = 0.8
    """Share of the pixels that the first squares change (0.8: Croce and Hein 2020, AutoAttack)."""
    loss: LossName = "margin"
    early_stop: bool = True
    """True to let an image of a deterministic victim leave the search once it is misclassified."""

    def __post_init__(self) -> None:
        at_least_one("queries", self.queries)
        one_of("loss", self.loss, tuple(LOSSES))
        if not 0.0 < self.share <= 1.0:
            raise HarnessError(f"share is {self.share!r}: it must be above 0 and at most 1")

    @property
    def passes(self) -> int:
        """Queries for each image, at most."""
        return self.queries

    def on_source(self) -> Square:
        """Return the search without its early stop."""
        return dataclasses.replace(self, early_stop=False)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        if not len(batch):
            return Perturbed(batch.images)
        images, labels = batch.images, batch.labels
        _, channels, height, width = images.shape
        active = torch.arange(len(batch), device=images.device)
        # The start, where the best is still unknown: vertical stripes of +-epsilon.
        stripes = _signs(draws.at(step=0), channels, 1, width).to(images)
        x = project(images + threat.epsilon * stripes, images, threat)
        logits = victim.logits(x, draws.at(step=0))
        greatest, fallen = against(self.loss, labels)(logits), logits.argmax(dim=1) != labels
        result = x.clone()
        # Finding out who may leave waits for the device: a GPU would run dry if asked every time.
        patience = 1 if images.device.type == "cpu" else 16

        leaves = self.early_stop and not victim.randomised
        per_step = 2 if victim.randomised else 1
        for number in range(1, (self.queries - 1) // per_step + 1):
            if leaves and number % patience == 0 and bool(fallen.any()):
                result[active] = x
                left = (~fallen).nonzero().squeeze(1)
                active, x, images, labels = active[left], x[left], images[left], labels[left]
                draws, greatest, fallen = draws[left], greatest[left], fallen[left]
                if not len(active):
                    return Perturbed(result)
            place = draws.at(step=number)
            inside = _squares(place, self.side(number * per_step, height, width), height, width)
            change = 2 * threat.epsilon * _signs(place, channels, 1, 1).to(x)
            changed = project(x + change * inside, images, threat)
            logits = victim.logits(changed, place)
            loss, fell = against(self.loss, labels)(logits), logits.argmax(dim=1) != labels
            if victim.randomised:
                greatest = against(self.loss, labels)(victim.logits(x, place))
                better = loss > greatest
            else:
                better = loss > greatest
                if leaves:
                    better &= ~fallen
            x = torch.where(better.reshape(-1, 1, 1, 1), changed, x)
            greatest = torch.where(better, loss, greatest)
            fallen = fallen | (better & fell)
        result[active] = x
        return Perturbed(result)

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the squares at this query, in pixels."""
        scaled = query * 10_000 / self.queries
        share = self.share * 0.5 ** sum(scaled > halving for halving in _HALVINGS)
        return min(max(round(math.sqrt(share * height * width)), 1), min(height, width))


def _squares(draws: Draws, side: int, height: int, width: int) -> Tensor:
    """Return (N, 1, H, W) bool: true in a random square of that side inside each image."""
    places = draws.uniform(2, lane="place")
    top = (places[:, :1] * (height - side + 1)).long()
    left = (places[:, 1:] * (width - side + 1)).long()
    rows = torch.arange(height, device=top.device) - top
    columns = torch.arange(width, device=left.device) - left
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _signs(draws: Draws, *shape: int) -> Tensor:
    """Return (N, *shape) float32 of -1 and +1 with equal probability."""
    return draws.bernoulli(0.5, *shape, lane="signs").float() * 2.0 - 1.0
