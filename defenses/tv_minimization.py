"""Total-variation minimisation (Guo et al. 2018): drop random pixels, rebuild smoothly."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

from torch import Tensor, nn

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
        _, channels, height, width = images.shape
        planes = 1 if self.drop == "pixels" else channels
        kept = draws.bernoulli(self.keep, planes, height, width, lane="kept").to(images.device)
        return minimise(
            images,
            kept,
            weight=self.weight,
            isotropic=self.variation == "isotropic",
            tolerance=self.tolerance,
        ).images
