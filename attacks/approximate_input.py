"""The first adaptive attack of the ME-Net paper (Yang et al. 2019, section 3.4)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, Protocol, cast

from torch import Tensor

from harness.attacks.parameters import one_of
from harness.attacks.projected_gradient import Keep, ProjectedGradient, ascend
from harness.random import Draws
from harness.registry import attacks
from harness.types import Backward, Batch, HarnessError, Perturbed, ThreatModel, Victim


@attacks.register("approximate-input")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ApproximateInput(ProjectedGradient):
    """Rebuild each image with the defense's own transformation, then attack that image by BPDA.

    The paper: the adversary "uses the exact preprocess method to approximate/reconstruct an input,
    and attacks the newly constructed image using the BPDA procedure". Read literally, the ball lies
    around the rebuilt image and the result may leave the one around the original: such an attack is
    not `bounded`. Its images outside count as not attacked, so its result is the accuracy as returned.
    """

    adaptive: ClassVar[bool] = True

    backward: Backward = "declared"
    keep: Keep = "last"
    ball: Literal["rebuilt", "original"] = "rebuilt"
    """The centre of the ball: the `rebuilt` image as in the paper, or the `original`; then the rebuilt
    image, brought into that ball, is where the ascent starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("ball", self.ball, ("rebuilt", "original"))

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """True where the result keeps to the ball around the original."""
        return self.ball == "original"

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return perturbed images in the box, and in the ball around the original or the rebuilt image.

        Raises:
            HarnessError: the transformation gives the classifier something else than an image.
        """
        if not len(batch):
            return Perturbed(batch.images)
        # Step -1: the ascent, from step 0 on, is not to meet the very draw that it starts from.
        rebuilt = cast(_Transforming, victim).transform(batch.images, draws.at(step=-1))
        if rebuilt.shape != batch.images.shape:
            raise HarnessError(
                f"approximate-input needs a defense that gives images: this one turns shape "
                f"{tuple(batch.images.shape[1:])} into {tuple(rebuilt.shape[1:])}: use bpda"
            )
        rebuilt = rebuilt.clamp(0.0, 1.0)
        if self.ball == "original":
            return ascend(self, victim, batch, threat, draws, start=rebuilt)
        return ascend(self, victim, Batch(rebuilt, batch.labels, batch.ids), threat, draws)


class _Transforming(Protocol):
    """A victim that shows its transformation, as white-box access does."""

    def transform(self, images: Tensor, draws: Draws) -> Tensor: ...
