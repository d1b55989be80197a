"""The fast gradient sign method (Goodfellow et al. 2015)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from harness.attacks.losses import LOSSES, LossName, against
from harness.attacks.parameters import at_least_one, offered, one_of, text
from harness.geometry import project, step
from harness.random import Draws
from harness.registry import attacks
from harness.types import Attack, Backward, Batch, Norm, Perturbed, ThreatModel, Victim


@attacks.register("fgsm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length epsilon along the gradient's sign, or along the gradient for L2."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    loss: LossName = "cross-entropy"
    backward: Backward = "exact"
    eot: int = 1
    """Draws of the defense's randomness that the gradient averages."""

    def __post_init__(self) -> None:
        one_of("loss", self.loss, tuple(LOSSES))
        text("backward", self.backward)
        at_least_one("eot", self.eot)

    @property
    def passes(self) -> int:
        """Forward-backward passes for each image: one for each draw."""
        return self.eot

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where this attack cannot be used."""
        super().check(victim, threat)
        offered(victim, self.backward)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        if not len(batch):
            return Perturbed(batch.images)
        gradient = victim.gradient(
            batch.images,
            draws,
            against(self.loss, batch.labels),
            backward=self.backward,
            samples=self.eot,
        )
        moved = batch.images + step(gradient.value, threat.epsilon, threat)
        return Perturbed(project(moved, batch.images, threat))
