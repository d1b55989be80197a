"""The last digits: truncated Newton steps in float64 whose linear systems are solved in float32.

Near the optimum f is all but quadratic, and conjugate gradients on its quadratic model need no search
along a line: the Hessian applied to (D, E) is

    D + M (U E^T + D V^T) V - R E     and     E + M (U E^T + D V^T)^T U - R^T D,

six products and two passes over an image. Single precision does for the model: the gradient that it
starts from, the step's length and the proof are in double precision, so that what one round leaves is
the next one's right-hand side, as in iterative refinement.
"""

import torch
from torch import Tensor

from .factored import (
    Pair,
    Place,
    Solution,
    along,
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

_INNER = 20  # conjugate-gradient steps a Newton step
_THRESHOLD_AFTER = (1, 2, 4, 8, 16)  # Newton steps


def polish(problems: Problems, start: Tensor, *, gap: float, max_iterations: int) -> Solution:
    """From `start` near the solution; arguments in float64, as in `conjugate.descend`.

    `iterations` counts the inner steps.
    """
    found = Solution.none_yet(problems.observed)
    place = begin(problems, start)
    rounds = 0
    while True:
        now = gradient(place)
        inverse = preconditioners(place.factors.to(torch.float32))
        steepest = preconditioned(inverse, now.to(torch.float32)).to(torch.float64)
        slope = -now.dot(steepest)
        exhausted = (rounds + 1) * _INNER > max_iterations
        tried = due(place, torch.zeros_like(slope) if exhausted else slope, gap)
        if len(tried):
            rows = settle(place, tried, found, rounds * _INNER, gap)
            place, now, inverse = place.at(rows), now.at(rows), inverse.at(rows)
            steepest, slope = steepest.at(rows), slope[rows]
        if exhausted:
            give_up(place, found, rounds * _INNER)
        if exhausted or not len(place.image):
            break
        direction = _newton(place, now, steepest, slope, inverse)
        descent = now.dot(direction)
        lost = (descent >= 0)[:, None, None]  # in the rounding of the single-precision model
        direction = Pair(
            *(torch.where(lost, *two) for two in zip(steepest, direction, strict=True))
        )
        place = move(place, direction, torch.where(descent >= 0, -slope, descent))
        rounds += 1
        if rounds in _THRESHOLD_AFTER:
            place = threshold(place)
    return found


def _newton(place: Place, now: Pair, steepest: Pair, slope: Tensor, inverse: Pair) -> Pair:
    """An approximate Newton step by `_INNER` preconditioned conjugate gradients, all in float32.

    The right-hand side is scaled to unit slope. Where the model bends downwards the step ends.
    """
    single, tiny = torch.float32, torch.finfo(torch.float32).tiny
    factors, mask, residual = (
        place.factors.to(single),
        place.mask.to(single),
        place.residual.to(single),
    )
    left, right = factors
    size = slope.clamp_min(torch.finfo(slope.dtype).tiny).sqrt()[:, None, None]
    rest = Pair(*(part / size for part in now)).to(single)
    direction = Pair(*(part / size for part in steepest)).to(single)
    step = Pair(*(torch.zeros_like(part) for part in direction))
    descent = -rest.dot(direction)
    going = descent > 0
    for inner in range(_INNER):
        linear = along(factors, direction, mask)
        across, down = direction
        bent = Pair(
            torch.baddbmm(across, right, linear.mT).baddbmm_(down, residual.mT, alpha=-1),
            torch.baddbmm(down, left, linear).baddbmm_(across, residual, alpha=-1),
        )
        bend = direction.dot(bent)
        going = going & (bend > 0)
        length = torch.where(going, descent / bend.clamp_min(tiny), 0)[:, None, None]
        step = step.plus(direction, length)
        if inner == _INNER - 1:
            break
        rest = rest.plus(bent, length)
        steepest = preconditioned(inverse, rest)
        before, descent = descent, -rest.dot(steepest)
        direction = steepest.plus(direction, (descent / before.clamp_min(tiny))[:, None, None])
    return Pair(*(part.double() * size for part in step))
