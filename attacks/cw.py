"""The Carlini-Wagner loss under a fixed epsilon, as Madry et al. (2018) attack with it."""

from __future__ import annotations

import dataclasses

from harness.attacks.losses import LossName
from harness.attacks.projected_gradient import ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Batch, Perturbed, ThreatModel, Victim


@attacks.register("cw")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CW(ProjectedGradient):
    """Projected gradient steps on the logit margin of Carlini and Wagner (2017), at fixed epsilon.

    Not the minimum-norm attack of the original paper: that one is `cw-l2`.
    """

    loss: LossName = "margin"

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        return ascend(self, victim, batch, threat, draws)
