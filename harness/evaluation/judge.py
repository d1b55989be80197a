"""The only judge. It trusts no attack: it checks every image and scores it on draws of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from harness.geometry import TOLERANCE, norms
from harness.random import Draws, Role
from harness.targets.defended import Defended
from harness.types import Batch, ThreatModel


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge found for N images under K scoring draws."""

    ids: Tensor
    labels: Tensor
    clean: Tensor
    """(K, N) predictions on the original images: the epsilon = 0 control."""
    adversarial: Tensor
    """(K, N) predictions on the attacked images, on the same draws; the control's outside the ball."""
    returned: Tensor
    """(K, N) predictions on the images as returned, however far away; the control's where unusable."""
    linf: Tensor
    l2: Tensor
    invalid: Tensor
    """(N,) int8: 0 valid; otherwise a bit set of NOT_FINITE, OUTSIDE_BOX, OUTSIDE_BALL."""

    def __len__(self) -> int:
        return len(self.ids)


NOT_FINITE, OUTSIDE_BOX, OUTSIDE_BALL = 1, 2, 4


def check_images(perturbed: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """(N,) int8: why an image breaks the threat model, 0 where it does not. Nothing is repaired."""
    finite = torch.isfinite(perturbed).flatten(1).all(dim=1)
    known = torch.where(finite.reshape(-1, 1, 1, 1), perturbed, images)
    box = ((known < 0) | (known > 1)).flatten(1).any(dim=1)
    ball = norms(known.double() - images.double(), threat.norm) > threat.epsilon + TOLERANCE
    codes = ~finite * NOT_FINITE + box * OUTSIDE_BOX + ball * OUTSIDE_BALL
    return codes.to(torch.int8)


def predictions(
    defended: Defended,
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    draws: int,
    role: Role = Role.SCORE,
    on_pass: Callable[[int], None] | None = None,
) -> Tensor:
    """(K, N) int64 predicted classes under `draws` fresh draws of the defense's randomness."""
    place = Draws(seed, ids, role)
    rows = []
    for draw in range(draws):
        with torch.no_grad():
            rows.append(defended.logits(images, place.at(draw=draw)).argmax(dim=1))
        if on_pass is not None:
            on_pass(len(images))
    return torch.stack(rows) if rows else ids.new_zeros(0, len(ids))


def judge(
    defended: Defended,
    batch: Batch,
    perturbed: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    draws: int,
    bounded: bool = True,
    clean: Tensor | None = None,
) -> Judgement:
    """Check and score attacked images. Control and attack are scored on the same draws, so that an
    image's two outcomes differ by the perturbation alone.

    An image that is not finite, leaves the box, or leaves the ball (of a bounded attack) counts as not
    attacked. For an unbounded attack an image outside the ball counts as not attacked too, but is no
    violation: accuracy is always accuracy at epsilon.

    Args:
        perturbed: (N, C, H, W) float32 as it is stored.
        clean: (K, N) the control's predictions where they are known already.
    """
    invalid = check_images(perturbed, batch.images, threat)
    usable = (invalid & (NOT_FINITE | OUTSIDE_BOX)) == 0
    scored = torch.where(usable.reshape(-1, 1, 1, 1), perturbed, batch.images)
    if clean is None:
        clean = predictions(defended, batch.images, batch.ids, seed=seed, draws=draws)
    returned = predictions(defended, scored, batch.ids, seed=seed, draws=draws)
    adversarial = torch.where(invalid == 0, returned, clean)
    if not bounded:
        invalid = torch.where(invalid == OUTSIDE_BALL, torch.zeros_like(invalid), invalid)
    difference = torch.nan_to_num(perturbed - batch.images, nan=float("inf"))
    return Judgement(
        ids=batch.ids,
        labels=batch.labels,
        clean=clean,
        adversarial=adversarial,
        returned=returned,
        linf=norms(difference, "linf"),
        l2=norms(difference, "l2"),
        invalid=invalid,
    )
