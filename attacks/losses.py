"""Losses that an attack maximises: functions of logits (N, K) and true labels (N,) to (N,).

Margins (`margin`, `dlr`, `probability`) are positive exactly where a sample is misclassified. All are
differentiable almost everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from harness.types import HarnessError

LossName = Literal["cross-entropy", "margin", "dlr", "probability"]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the log-probability of the true label, (N,) (Goodfellow et al. 2015).

    Its float32 gradient is exactly zero where the model is certain; that of `margin` is not.
    """
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max over j != y of z_j, minus z_y, (N,) (Carlini and Wagner 2017, objective f_6)."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    return _others(logits, labels).amax(dim=1) - true


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the margin divided by the distance of the greatest logit from the third, (N,).

    This is the difference of logits ratio: neither shift nor scale of the logits changes it (Croce and Hein
    2020, equation 6).

    Raises:
        HarnessError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise HarnessError(
            f"the DLR loss needs at least 3 classes, the model has {logits.shape[1]}: "
            "use loss=margin"
        )
    greatest = logits.topk(3, dim=1).values
    return margin(logits, labels) / (greatest[:, 0] - greatest[:, 2] + 1e-12)


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the greatest probability of another class, minus that of the true one, (N,).

    Against one rival class it is linear in the probabilities: its mean over draws of a randomised
    defense is the margin of the mean probabilities, which decides a vote of their sum.
    """
    return margin(logits.softmax(dim=1), labels)


def towards(loss: LossName, labels: Tensor, rivals: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss of that name as a function of logits (N, K), aimed at one rival class an image.

    Cross-entropy becomes the rival's log-probability; the others take the rival in place of the greatest
    other class. DLR divides by z_1 - (z_3 + z_4) / 2 of the sorted logits (Croce and Hein 2020, equation
    7), by z_1 - z_3 where there are three classes.
    """

    def aimed(logits: Tensor) -> Tensor:
        if loss == "cross-entropy":
            return -cross_entropy(logits, rivals)
        values = logits.softmax(dim=1) if loss == "probability" else logits
        ahead = (values.gather(1, rivals[:, None]) - values.gather(1, labels[:, None])).squeeze(1)
        if loss != "dlr":
            return ahead
        greatest = logits.topk(min(4, logits.shape[1]), dim=1).values
        return ahead / (greatest[:, 0] - greatest[:, 2:].mean(dim=1) + 1e-12)

    return aimed


def runners_up(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the `count` most probable wrong classes, (N, count), the most probable first."""
    true = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return probabilities.masked_fill(true, -torch.inf).topk(count, dim=1).indices


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits (N, K) with minus infinity at the true label."""
    true = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return logits.masked_fill(true, -torch.inf)


LOSSES: Mapping[LossName, Loss] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability": probability,
}


def against(loss: LossName, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the named loss for these true labels, as a function of logits (N, K) to (N,)."""
    function = LOSSES[loss]
    return lambda logits: function(logits, labels)
