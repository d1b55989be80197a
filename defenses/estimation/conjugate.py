"""Preconditioned conjugate gradients (Polak-Ribiere) on both factors.

Each step takes the exact minimum of the quartic along its direction; a few are proximal steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .factored import (
    Pair,
    Place,
    Solution,
    begin,
    due,
    give_up,
    gradient,
    move,
    preconditioned,
    preconditioners,
    settle,
    threshold,
)
from .inputs import Problems

_FIRST = 4  # step of the first thresholding; the next come after 4, 8, 16 times as many more
_CHECK_EVERY = 2


class _Memory(NamedTuple):
    """State of the previous step, for each image."""

    gradient: Pair
    direction: Pair
    slope: Tensor  # (n,) of the preconditioned gradient; infinite before the first step
    inverse: Pair  # preconditioners

    def at(self, rows: Tensor) -> "_Memory":
        gradient, direction, slope, inverse = self
        return _Memory(gradient.at(rows), direction.at(rows), slope[rows], inverse.at(rows))


def descend(
    problems: Problems, start: Tensor | None = None, *, gap: float, max_iterations: int
) -> Solution:
    """Solve problems (N, H, W), H <= W, at threshold 1; no image depends on another.

    start: (N, H, W), a guess of the solution: a proximal step from there makes the first factors.
    """
    found = Solution.none_yet(problems.observed)
    place = begin(problems, start)
    memory = _blank(place)
    step = since = 0
    pause = _FIRST
    while len(place.image):
        place, memory = _step(place, memory, renew=since < 5 or since % 3 == 0)
        step, since = step + 1, since + 1
        if since == pause:
            place = threshold(place)
            memory = _blank(place)
            since, pause = 0, max(2 * pause, 4 * _FIRST)
        exhausted = step >= max_iterations
        if step % _CHECK_EVERY and not exhausted:
            continue
        slope = torch.zeros_like(memory.slope) if exhausted else memory.slope
        tried = due(place, slope, gap)
        if len(tried):
            rows = settle(place, tried, found, step, gap)
            place, memory = place.at(rows), memory.at(rows)
        if exhausted:
            give_up(place, found, step)
            break
    return found


def _blank(place: Place) -> _Memory:
    """Return the state before the first step, in which the previous direction has weight zero."""
    zeros = Pair(*(torch.zeros_like(factor) for factor in place.factors))
    columns = zeros.left.shape[1]
    square = zeros.left.new_zeros(len(zeros.left), columns, columns)
    return _Memory(zeros, zeros, torch.full_like(place.value, torch.inf), Pair(square, square))


def _step(place: Place, memory: _Memory, renew: bool) -> tuple[Place, _Memory]:
    """Take one conjugate-gradient step; `renew` recomputes the preconditioners."""
    now = gradient(place)
    inverse = preconditioners(place.factors) if renew else memory.inverse
    steepest = preconditioned(inverse, now)
    slope = -now.dot(steepest)
    weight = ((slope + memory.gradient.dot(steepest)) / memory.slope).clamp_min(0)
    descent = weight * now.dot(memory.direction) - slope
    restart = descent >= 0  # only where the direction would not descend
    weight = torch.where(restart, 0, weight)
    descent = torch.where(restart, -slope, descent)
    direction = steepest.plus(memory.direction, weight[:, None, None])
    slope = slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return move(place, direction, descent), _Memory(now, direction, slope, inverse)
