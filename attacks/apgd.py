"""Auto-PGD (Croce and Hein 2020) on the one inner loop, with expectation over transformation inside."""

from __future__ import annotations

import dataclasses

from harness.attacks.losses import LossName
from harness.attacks.projected_gradient import ProjectedGradient, ascend
from harness.attacks.step_rules import Schedule
from harness.random import Draws
from harness.registry import attacks
from harness.types import Backward, Batch, Perturbed, ThreatModel, Victim


@attacks.register("apgd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(ProjectedGradient):
    """Auto-PGD: momentum, and a step that halves at checkpoints where the loss no longer rises.

    `steps` gradients an ascent; the reference's n iterations take n + 1. Its random start lies on the
    surface of the ball, here it is uniform in the ball. `rand` of AutoAttack is eot=20.
    """

    steps: int = 100
    schedule: Schedule = "adaptive"
    momentum: float = 0.25
    backward: Backward = "declared"

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        return ascend(self, victim, batch, threat, draws)


@attacks.register("apgd-dlr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio, which no scale of the logits flattens."""

    loss: LossName = "dlr"
