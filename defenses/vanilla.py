"""No transformation. Trained adversarially it is the defense of Madry et al. (2018)."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from harness.random import OpaqueDraws
from harness.registry import defenses
from harness.types import Defense


@defenses.register("vanilla")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Vanilla(Defense):
    """The classifier alone."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images
