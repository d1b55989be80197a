"""Random noise: the control that an attack has to beat."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from harness.geometry import random_start
from harness.random import Draws
from harness.registry import attacks
from harness.types import Access, Attack, Batch, Norm, Perturbed, ThreatModel, Victim


@attacks.register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """One uniform draw from the ball around each image, clipped to the box: a control."""

    access: ClassVar[Access] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    @property
    def passes(self) -> int:
        """Zero: the model is not asked."""
        return 0

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the images plus uniform noise, within the ball and the box."""
        if not len(batch):
            return Perturbed(batch.images)
        return Perturbed(random_start(batch.images, threat, draws))
