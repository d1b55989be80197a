"""No attack: the control that stands beside every number."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from harness.random import Draws
from harness.registry import attacks
from harness.types import Access, Attack, Batch, Norm, Perturbed, ThreatModel, Victim


@attacks.register("clean")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean(Attack):
    """The images as they are: the control at epsilon = 0."""

    access: ClassVar[Access] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    @property
    def passes(self) -> int:
        """Zero: the model is not asked."""
        return 0

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the batch's images unchanged."""
        return Perturbed(batch.images)
