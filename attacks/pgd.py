"""Projected gradient descent on the defense as it is (Madry et al. 2018)."""

from __future__ import annotations

import dataclasses

from harness.attacks.projected_gradient import ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Batch, Perturbed, ThreatModel, Victim


@attacks.register("pgd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(ProjectedGradient):
    """Gradient steps projected onto the ball, through the defense as it is (Madry et al. 2018)."""

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        return ascend(self, victim, batch, threat, draws)
