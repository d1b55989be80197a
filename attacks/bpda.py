"""Backward pass differentiable approximation (Athalye et al. 2018)."""

from __future__ import annotations

import dataclasses

from harness.attacks.projected_gradient import Keep, ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Backward, Batch, Perturbed, ThreatModel, Victim


@attacks.register("bpda")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BPDA(ProjectedGradient):
    """Projected gradient steps through the backward pass that the defense declares.

    The forward pass is always the defense's own. Without `eot` a step follows one draw of its
    randomness. `keep` is `last`, as in the ME-Net paper: `best` and `first` are stronger.
    """

    backward: Backward = "declared"
    keep: Keep = "last"

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        return ascend(self, victim, batch, threat, draws)
