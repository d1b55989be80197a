"""The moves of an ascent: how far each image steps, and with what momentum.

Every image has a step size of its own, so all state is by image and follows those that leave.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from harness.geometry import project, step
from harness.types import ThreatModel

Schedule = Literal["constant", "linear", "adaptive"]

_ENOUGH = 0.75
"""The share of steps that raise the loss below which a step size is too long (Croce and Hein 2020: rho)."""


def adaptive_checkpoints(steps: int) -> dict[int, int]:
    """Return the numbers of steps after which Auto-PGD looks at its progress, each with the steps since.

    After 22 % of the steps, then after spans that shrink by 3 % of the steps each, to 6 % at the least
    (Croce and Hein 2020, section 3.1; rounded as in their code).
    """
    span, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, number = {}, span
    while number < steps:
        found[number] = span
        span = max(span - shrink, least)
        number += span
    return found


class Walk:
    """The moves of one ascent, with its state for each image.

    `constant` keeps the step size, `linear` lets it fall to zero, and `adaptive` is Auto-PGD's rule (Croce
    and Hein 2020, algorithm 1): at each checkpoint the step is halved, and the ascent goes on from the
    iterate of greatest loss, for an image whose loss rose in too few of the steps or whose greatest loss
    and step are as they were. `momentum` m: x + (1 - m) (z - x) + m (x - previous x), projected, where z is
    the plain step's end (their equation 3; 0.25 there).
    """

    def __init__(
        self, schedule: Schedule, momentum: float, size: float, steps: int, threat: ThreatModel
    ) -> None:
        self._schedule, self._momentum = schedule, momentum
        self._size, self._steps, self._threat = size, steps, threat
        self._number = 0
        self._state: dict[str, Tensor] = {}
        self._checkpoints = adaptive_checkpoints(steps) if schedule == "adaptive" else {}

    def select(self, left: Tensor) -> None:
        """Keep the state of these images only."""
        self._state = {name: value[left] for name, value in self._state.items()}

    def move(self, x: Tensor, gradient: Tensor, loss: Tensor, images: Tensor) -> Tensor:
        """Return the next iterates (N, C, H, W).

        Args:
            x: the iterates; images: the centres of their balls.
            gradient: (N, C, H, W), and loss: (N,), at x.
        """
        if self._schedule == "adaptive":
            x, gradient, size = self._adapt(x, gradient, loss)
            length = step(gradient, 1.0, self._threat) * _wide(size)
        elif self._schedule == "linear":
            length = step(gradient, self._size * (1 - self._number / self._steps), self._threat)
        else:
            length = step(gradient, self._size, self._threat)
        moved = project(x + length, images, self._threat)
        if self._momentum:
            if self._number:
                plain, before = moved - x, x - self._state["previous"]
                moved = x + (1 - self._momentum) * plain + self._momentum * before
                moved = project(moved, images, self._threat)
            self._state["previous"] = x
        self._number += 1
        return moved

    def _adapt(self, x: Tensor, gradient: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (iterates to step from, their gradients, step sizes) by Auto-PGD's rule."""
        state = self._state
        if not self._number:
            state.update(
                size=torch.full_like(loss, self._size),
                rises=torch.zeros_like(loss),
                greatest=torch.full_like(loss, -math.inf),
                best=x,
                best_gradient=gradient,
                at_checkpoint=loss,
                halved=torch.ones_like(loss, dtype=torch.bool),
                loss=torch.full_like(loss, math.inf),
            )
        state["rises"] = state["rises"] + (loss > state["loss"])
        state["loss"] = loss
        better = loss > state["greatest"]
        state["greatest"] = torch.where(better, loss, state["greatest"])
        state["best"] = torch.where(_wide(better), x, state["best"])
        state["best_gradient"] = torch.where(_wide(better), gradient, state["best_gradient"])
        span = self._checkpoints.get(self._number)
        if span is None:
            return x, gradient, state["size"]
        stuck = ~state["halved"] & (state["at_checkpoint"] >= state["greatest"])
        halve = (state["rises"] <= _ENOUGH * span) | stuck
        state["size"] = torch.where(halve, state["size"] / 2, state["size"])
        state["halved"], state["at_checkpoint"] = halve, state["greatest"]
        state["rises"] = torch.zeros_like(loss)
        x = torch.where(_wide(halve), state["best"], x)
        return x, torch.where(_wide(halve), state["best_gradient"], gradient), state["size"]


def _wide(values: Tensor) -> Tensor:
    """Return (N,) as (N, 1, 1, 1), to broadcast against images."""
    return values.reshape(-1, 1, 1, 1)
