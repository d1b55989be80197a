"""BPDA against one fixed draw of the defense's randomness, judged under fresh ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from harness.attacks.projected_gradient import Keep, ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Backward, Batch, Gradient, Perturbed, ThreatModel, Victim


@attacks.register("bpda-fixed-mask")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMaskBPDA(ProjectedGradient):
    """BPDA that sees the same draws of the defense's randomness at every step.

    Success with the randomness fixed is a check of Carlini et al. (2019): an attack that fails even so
    does not fail because of the randomness. `eot` is the number of draws held fixed. What is found is
    scored under fresh draws, so it is a transfer between draws. It is no rival of plain BPDA and is not
    declared adaptive: that it is weaker shows what the randomness is worth.
    """

    backward: Backward = "declared"
    keep: Keep = "best"

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return the perturbed images, in the ball and the box."""
        return ascend(self, _Held(victim), batch, threat, draws)


class _Held:
    """A victim that is always asked at step 0: its draw k is the same at every step."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim

    @property
    def classes(self) -> int:
        return self._victim.classes

    @property
    def randomised(self) -> bool:
        """False: the attack always meets the same draw."""
        return False

    @property
    def backward_passes(self) -> tuple[str, ...]:
        return self._victim.backward_passes

    @staticmethod
    def _hold(draws: Draws) -> Draws:
        return draws.at(step=0)

    def labels(self, images: Tensor, draws: Draws) -> Tensor:
        return self._victim.labels(images, self._hold(draws))

    def logits(self, images: Tensor, draws: Draws) -> Tensor:
        return self._victim.logits(images, self._hold(draws))

    def gradient(
        self,
        images: Tensor,
        draws: Draws,
        loss: Callable[[Tensor], Tensor],
        *,
        backward: Backward = "declared",
        samples: int = 1,
    ) -> Gradient:
        held = self._hold(draws)
        return self._victim.gradient(images, held, loss, backward=backward, samples=samples)

    def transform(self, images: Tensor, draws: Draws) -> Tensor:
        return self._victim.transform(images, self._hold(draws))

    def module(self, batch: Batch, draws: Draws) -> nn.Module:
        return self._victim.module(batch, self._hold(draws))
