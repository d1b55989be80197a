"""A defense and its classifier as one function from images to logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.cells.cells import Precision
from harness.random import Draws, OpaqueDraws, Role, content_ids
from harness.types import Backward, Defense, HarnessError


@dataclasses.dataclass(frozen=True)
class Defended:
    """A defended model: transformation, classifier and, where the defense has one, auxiliary module."""

    model: nn.Module
    defense: Defense
    classes: int
    auxiliary: nn.Module | None = None
    precision: torch.dtype = torch.float32
    """The precision of the classifier. A transformation is always computed in its own precision."""
    search: Precision = "auto"
    outer: Draws | None = None
    """The draws of the adversarial training step whose inner attack sees this; None elsewhere."""

    def in_training(self, draws: Draws) -> Defended:
        """Return the model as the inner attack of a training step meets it, with that step's draws."""
        return dataclasses.replace(self, outer=draws)

    def quick(self, device: torch.device) -> Defended:
        """Return the model for attacks and training: its classifier is in bfloat16 where `search` says so."""
        half = device.type == "cuda" if self.search == "auto" else self.search == "bfloat16"
        return dataclasses.replace(self, precision=torch.bfloat16) if half else self

    @property
    def randomised(self) -> bool:
        """True where two queries of one image may be answered differently."""
        return self.defense.is_random

    def modules(self) -> list[nn.Module]:
        return [self.model] + ([self.auxiliary] if self.auxiliary is not None else [])

    def frozen(self) -> Defended:
        """Return the model itself, now in evaluation mode and with parameters that hold no gradients."""
        for module in self.modules():
            module.eval().requires_grad_(False)
            module.zero_grad(set_to_none=True)
        return self

    def transform(self, images: Tensor, draws: Draws, *, backward: Backward = "exact") -> Tensor:
        """Return the classifier's input at inference: (N, C, H, W) in [0, 1] -> (N, C', H, W).

        It is differentiable along the backward pass `backward`.
        """
        step = None if self.outer is None else dataclasses.replace(self.outer, ids=draws.ids)
        outer = None if step is None else step.opaque()
        apply = functools.partial(self._at_inference, outer=outer)
        return self._see(images, self._inference_draws(images, draws), backward, apply, outer)

    def training_transform(
        self, images: Tensor, draws: Draws, *, version: int | None = None
    ) -> Tensor:
        """Return a training version of each image: the stored version of this number, or a fresh one."""
        return self.defense.training_transform(
            images, draws.opaque(), self.auxiliary, version=version
        )

    def logits(self, images: Tensor, draws: Draws, *, backward: Backward = "declared") -> Tensor:
        """Return (N, K) logits at inference, differentiable with respect to the images along `backward`."""
        return self.classify(self.transform(images, draws, backward=backward))

    def training_logits(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (N, K) logits of a fresh training version of each image."""
        apply = functools.partial(self.defense.training_transform, auxiliary=self.auxiliary)
        return self.classify(self._see(images, draws.opaque(), "declared", apply))

    def _see(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        backward: Backward,
        apply: Callable[[Tensor, OpaqueDraws], Tensor],
        outer: OpaqueDraws | None = None,
    ) -> Tensor:
        """Return `apply` of the images, differentiable along `backward`.

        Raises:
            HarnessError: the defense lacks this backward pass, or the pass gives another shape.
        """
        defense = self.defense
        kind = defense.backward if backward == "declared" else backward
        if kind == "exact" or not (images.requires_grad and torch.is_grad_enabled()):
            return apply(images, draws)
        if kind in defense.backward_passes:
            return defense.transform_along(kind, images, draws, self.auxiliary, outer=outer)
        if kind not in ("identity", defense.backward):
            raise HarnessError(
                f"{type(defense).__name__} has no backward pass {kind!r}: "
                f"it offers {', '.join(defense.offered_backward_passes)}"
            )
        with torch.no_grad():
            hard = apply(images.detach(), draws)
        if kind == "identity":
            soft = images
        else:
            soft = defense.surrogate(images, draws, self.auxiliary)
        if soft.shape != hard.shape:
            raise HarnessError(
                f"the {kind} backward pass of {type(defense).__name__} gives shape "
                f"{tuple(soft.shape[1:])} where its forward gives {tuple(hard.shape[1:])}: "
                "use the declared backward pass (-A backward=declared)"
            )
        passed: Tensor = _Straight.apply(soft, hard)
        return passed

    def _at_inference(
        self, images: Tensor, draws: OpaqueDraws, outer: OpaqueDraws | None
    ) -> Tensor:
        """Return the classifier's input at inference or, with `outer`, in the inner attack of training."""
        if outer is None:
            return self.defense.transform(images, draws, self.auxiliary)
        return self.defense.inner_transform(images, draws, self.auxiliary, outer=outer)

    def classify(self, seen: Tensor) -> Tensor:
        """Return (N, K) float32 logits of the transformation's output (N, C', H, W)."""
        if self.precision == torch.float32:
            logits: Tensor = self.model(seen)
            return logits
        with torch.autocast(seen.device.type, dtype=self.precision):
            logits = self.model(seen)
        return logits.float()

    def _inference_draws(self, images: Tensor, draws: Draws) -> OpaqueDraws:
        """Return the draws that the defense's `randomness` asks for at inference.

        An inner attack of training always meets fresh draws.
        """
        if self.defense.randomness == "fresh" or self.outer is not None:
            return draws.opaque()
        if self.defense.randomness == "fixed":
            ids = torch.zeros_like(draws.ids)
        else:
            ids = content_ids(images)
        return Draws(draws.seed, ids, Role.FIXED).opaque()


class _Straight(torch.autograd.Function):
    """A function that returns `hard` and passes the gradient on to `soft`: BPDA in straight-through form."""

    @staticmethod
    def forward(context: object, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
