"""ME-Net (Yang et al. 2019): drop pixels at random, rebuild the image by matrix estimation, classify."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.defenses.estimation import (
    Estimate,
    approximate_rank,
    native,
    nuclear_norm,
    reconstruct,
    soft_impute,
    straight_through,
    usvt,
)
from harness.random import OpaqueDraws
from harness.registry import defenses, estimators
from harness.types import Defense, HarnessError

Estimator = Callable[[Tensor, Tensor], Estimate]

for _name, _estimator in (
    ("usvt", usvt),
    ("soft-impute", soft_impute),
    ("nuclear-norm", nuclear_norm),
):
    estimators.register(_name)(_estimator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MENet(Defense):
    """Masks with keep probabilities p_k = p_low + k (p_high - p_low) / n, k = 1..n, in training;
    one mask with their mean at inference (section 2.3; the released code's grid).

    `concat` puts the channels side by side and masks every matrix entry; `separate` estimates each
    channel on its own under one shared mask. `estimates` fixed training versions of each image, as in
    the paper; 0 draws a fresh mask at every use, as adversarial training does, with `level`: p drawn
    from the grid, or always its `highest`, as the released code does (it takes the ceiling of a fraction).
    """

    randomised: ClassVar[bool] = True
    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "identity"
    backward_passes: ClassVar[tuple[str, ...]] = ("mask-aware", "straight")

    p_low: float = 0.4
    p_high: float = 0.6
    masks: int = 10
    channels: Literal["concat", "separate"] = "concat"
    estimates: int = 10
    level: Literal["drawn", "highest"] = "drawn"

    def __post_init__(self) -> None:
        if not 0 < self.p_low <= self.p_high <= 1:
            raise HarnessError(
                f"keep probabilities from {self.p_low} to {self.p_high}: "
                "they must satisfy 0 < p_low <= p_high <= 1"
            )
        if self.masks < 1:
            raise HarnessError(f"masks is {self.masks}: it must be 1 or more")
        if self.estimates not in (0, self.masks):
            raise HarnessError(
                f"estimates is {self.estimates}: it must be 0 (fresh masks) or masks = {self.masks}"
            )

    @property
    @abc.abstractmethod
    def estimator(self) -> Estimator:
        """The estimator: (observed, mask) -> Estimate, on batched matrices."""

    def computed_by(self, device: str) -> Mapping[str, str]:
        """Return whether estimation runs compiled or through torch."""
        return {"estimation": native.computed_by(device)}

    @property
    def is_random(self) -> bool:
        return super().is_random and self.p_low < 1

    @staticmethod
    def approximate_rank(images: Tensor) -> Tensor:
        """Return (N,) the fewest singular values that hold 90 % of each image's energy (Figure 1)."""
        return approximate_rank(images)

    def keep_probability(self, k: int) -> float:
        """Return the keep probability of training mask k, counted from 0."""
        return self.p_low + (k + 1) * (self.p_high - self.p_low) / self.masks

    @property
    def inference_probability(self) -> float:
        """The keep probability at inference: the mean of the training probabilities."""
        return sum(map(self.keep_probability, range(self.masks))) / self.masks

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return self._rebuild(images, draws, self.inference_probability)

    def transform_along(
        self,
        backward: str,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        outer: OpaqueDraws | None = None,
    ) -> Tensor:
        """Return the rebuilt images, differentiable along `mask-aware` or `straight`.

        `mask-aware` takes the output's gradient times mask / keep probability: zero at a pixel that the
        mask dropped, which has no influence, and the identity on average over masks. `straight` is exact
        through mask and estimation, and passes the final clip to [-1, 1] as if it were not there.
        """
        share = self.inference_probability if outer is None else self._levels(images, outer)
        return self._rebuild(images, draws, share, backward)

    def training_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        version: int | None = None,
    ) -> Tensor:
        if version is not None:
            return self._rebuild(images, draws, self.keep_probability(version))
        return self._rebuild(images, draws, self._levels(images, draws))

    def inner_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        outer: OpaqueDraws,
    ) -> Tensor:
        """Return each image rebuilt from a fresh mask with the keep probability of the step outside."""
        return self._rebuild(images, draws, self._levels(images, outer))

    def _levels(self, images: Tensor, draws: OpaqueDraws) -> float | Tensor:
        """Return the keep probability of each image's fresh training mask, (N,) or one for all."""
        if self.level == "highest":
            return self.keep_probability(self.masks - 1)
        lowest = self.keep_probability(0)
        width = self.keep_probability(1) - lowest if self.masks > 1 else 0.0
        return lowest + width * draws.integers(self.masks, lane="level").to(images)

    def _rebuild(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        probability: float | Tensor,
        backward: str = "exact",
    ) -> Tensor:
        _, channels, height, width = images.shape
        planes = channels if self.channels == "concat" else 1
        mask = draws.bernoulli(probability, planes, height, width, lane="mask")
        estimated = functools.partial(
            reconstruct, images, mask, estimator=self.estimator, channels=self.channels
        )
        if not (images.requires_grad and torch.is_grad_enabled()):
            return estimated(backward="none")
        if backward == "mask-aware":
            share = (
                probability if isinstance(probability, float) else probability.reshape(-1, 1, 1, 1)
            )
            weight = mask.to(images) / share
            return straight_through(images * weight, estimated(backward="none"))
        return estimated(backward="straight" if backward == "straight" else "exact")


@defenses.register("menet-nuc")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NuclearNormMENet(MENet):
    """ME-Net with nuclear-norm minimisation, solved to a relative duality gap."""

    mu: float = 1.0
    gap: float = 1e-3

    @property
    def estimator(self) -> Estimator:
        return functools.partial(nuclear_norm, mu=self.mu, gap=self.gap)


@defenses.register("menet-softimpute")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftImputeMENet(MENet):
    """ME-Net with Soft-Impute at a fiftieth of the largest singular value.

    Solved to a relative duality gap; `tolerance` takes the paper's stopping rule instead (1e-3, at most
    100 iterations), which ends short of the optimum and takes longer. `keep_observed` copies observed
    entries back verbatim, as the released code does.
    """

    keep_observed: bool = False
    gap: float = 1e-3
    tolerance: float | None = None

    @property
    def estimator(self) -> Estimator:
        return functools.partial(
            soft_impute,
            keep_observed=self.keep_observed,
            gap=self.gap,
            tolerance=self.tolerance,
        )


@defenses.register("menet-usvt")
@dataclasses.dataclass(frozen=True, kw_only=True)
class USVTMENet(MENet):
    """ME-Net with universal singular value thresholding."""

    rule: Literal["fixed", "threshold"] = "fixed"
    rank_fraction: float = 0.8

    @property
    def estimator(self) -> Estimator:
        return functools.partial(usvt, rule=self.rule, rank_fraction=self.rank_fraction)


@defenses.register("menet")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomMENet(MENet):
    """ME-Net with any registered estimator, or one of your own: -D method=path.py:function."""

    method: str = "nuclear-norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        estimators.get(self.method)

    @property
    def estimator(self) -> Estimator:
        chosen: Estimator = estimators.get(self.method)
        return chosen
