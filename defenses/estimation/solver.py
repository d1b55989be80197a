"""Minimise lambda ||X||_* + 1/2 ||M (X - A)||^2 over X to a certified relative duality gap."""

import torch
from torch import Tensor

from . import conjugate, native
from .factored import Solution, sketch
from .inputs import Problems

_ROUGH = 1e-3  # gap at which single precision hands over
_SHARE = 8  # single precision may take one part of so many of the iterations allowed
_SINGLE = 1e3  # ||A|| / lambda up to which it is sure to tell what lies above the threshold


def solve(
    problems: Problems,
    shrinkage: Tensor,
    start: Tensor | None = None,
    *,
    gap: float,
    max_iterations: int,
) -> Solution:
    """Solve problems (N, H, W), H <= W, shrinkage (N,) above 0; no image depends on another.

    start: (N, H, W), a guess of the solution.
    """
    scale = shrinkage[:, None, None]
    units = Problems(problems.observed / scale, problems.mask)
    guess = None if start is None else start / scale
    way = _from_single if problems.observed.dtype == torch.float64 else descend
    found = way(units, guess, gap=gap, max_iterations=max_iterations)
    found.value.mul_(scale)
    return found


def _from_single(
    problems: Problems, start: Tensor | None, *, gap: float, max_iterations: int
) -> Solution:
    """Solve in float32 as far as its rounding allows, then go on in float64."""
    observed, mask = problems
    guess = torch.zeros_like(observed) if start is None else start.clone()
    found = Solution.none_yet(observed)
    share = max_iterations // _SHARE
    told = torch.linalg.vector_norm(observed, dim=(1, 2)) <= _SINGLE
    warm = torch.full_like(told, start is not None)
    rows = told.nonzero()[:, 0] if share else told.new_zeros(0, dtype=torch.long)
    if len(rows):
        rough = descend(
            Problems(observed[rows].float(), mask[rows].float()),
            None if start is None else start[rows].float(),
            gap=max(gap, _ROUGH) / 2,
            max_iterations=share,
        )
        guess[rows], found.iterations[rows] = rough.value.double(), rough.iterations
        warm[rows] = True
    for guessed in (True, False):
        rows = (warm == guessed).nonzero()[:, 0]
        if len(rows):
            rest = descend(
                Problems(observed[rows], mask[rows]),
                guess[rows] if guessed else None,
                gap=gap,
                max_iterations=max_iterations - share,
            )
            found.put(rows, rest._replace(iterations=found.iterations[rows] + rest.iterations))
    return found


def descend(
    problems: Problems, start: Tensor | None, *, gap: float, max_iterations: int
) -> Solution:
    """Solve at threshold 1 in the precision of the problems, by the lanes where they can."""
    found = native.descend(*problems, start, sketch, gap=gap, max_iterations=max_iterations)
    if found is not None:
        return Solution(*found)
    return conjugate.descend(problems, start, gap=gap, max_iterations=max_iterations)
