"""Total-variation minimisation (Guo et al. 2018): drop random pixels, rebuild smoothly."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.defenses.estimation import straight_through
from harness.defenses.total_variation import minimise
from harness.random import OpaqueDraws
from harness.registry import defenses
from harness.types import Defense, HarnessError


@defenses.register("tvm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TotalVariationMinimisation(Defense):
    """Random pixel dropping and total-variation minimisation on the kept pixels.

    Each pixel is kept with probability `keep`; of all images, the one of least

        sum over kept pixels of (z - x)**2  +  weight * TV(z)

    replaces the image, channel by channel, up to `tolerance` (a relative duality gap, certified for
    each image). `variation` is isotropic as in the code of Guo et al. (their section 4.2 has the
    error unsquared) or anisotropic as in that of Athalye et al. (2018). `drop` drops pixels whole,
    in all channels, as the latter, or every channel's entries apart, as the former. Values of
    dropped pixels do not enter.
    """

    randomised: ClassVar[bool] = True
    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "identity"
    backward_passes: ClassVar[tuple[str, ...]] = ("mask-aware",)
    differentiable: ClassVar[bool] = False

    keep: float = 0.5
    weight: float = 0.03
    variation: Literal["isotropic", "anisotropic"] = "isotropic"
    drop: Literal["pixels", "entries"] = "pixels"
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise HarnessError(
                f"keep is {self.keep}: the probability of keeping a pixel must be above 0 and at "
                "most 1 (-D keep=0.5)"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise HarnessError(
                f"weight is {self.weight}: the weight of the total variation must be positive, in "
                "pixel values of [0, 1] (-D weight=0.03)"
            )
        if not 1e-5 <= self.tolerance < 1:
            raise HarnessError(
                f"tolerance is {self.tolerance}: the relative duality gap must be from 1e-5, what "
                "single precision reaches, to below 1 (-D tolerance=1e-3)"
            )
        if self.variation not in ("isotropic", "anisotropic"):
            raise HarnessError(
                f"variation is {self.variation!r}: it must be isotropic or anisotropic"
            )
        if self.drop not in ("pixels", "entries"):
            raise HarnessError(f"drop is {self.drop!r}: it must be pixels or entries")

    @property
    def is_random(self) -> bool:
        return super().is_random and self.keep < 1

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return minimise(
            images,
            self._kept(images, draws),
            weight=self.weight,
            isotropic=self.variation == "isotropic",
            tolerance=self.tolerance,
        ).images

    def transform_along(
        self,
        backward: str,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        outer: OpaqueDraws | None = None,
    ) -> Tensor:
        """Return the smooth images, differentiable along `mask-aware`.

        The output's gradient times kept / keep: zero at a dropped value, which does not enter.
        """
        with torch.no_grad():
            rebuilt = self.transform(images.detach(), draws)
        weight = self._kept(images, draws).to(images) / self.keep
        return straight_through(images * weight, rebuilt)

    def _kept(self, images: Tensor, draws: OpaqueDraws) -> Tensor:
        """Return the mask of kept values, (N, 1 or C, H, W) bool."""
        _, channels, height, width = images.shape
        planes = 1 if self.drop == "pixels" else channels
        return draws.bernoulli(self.keep, planes, height, width, lane="kept").to(images.device)
