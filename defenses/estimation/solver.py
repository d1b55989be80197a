"""min over X of lambda ||X||_* + 1/2 ||M (X - A)||^2 to a certified relative duality gap."""

import torch
from torch import Tensor

from .conjugate import descend
from .factored import Solution
from .inputs import Problems
from .newton import polish

_ROUGH = 1e-3  # gap at which single precision hands over
_SHARE = 8  # one part of the iterations allowed for getting near, one for Newton steps
_SINGLE = 1e3  # ||A|| / lambda up to which it is sure to tell what lies above the threshold


def solve(
    problems: Problems,
    shrinkage: Tensor,
    start: Tensor | None = None,
    *,
    gap: float,
    max_iterations: int,
) -> Solution:
    """Problems of (N, H, W) with H <= W, shrinkage (N,) above 0; no image depends on another.

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
    """float64: near in float32, Newton steps from there; what that leaves, in float64 all the way."""
    found = Solution.none_yet(problems.observed)
    far = torch.ones_like(found.converged)
    share = max_iterations // _SHARE
    told = torch.linalg.vector_norm(problems.observed, dim=(1, 2)) <= _SINGLE
    if share and bool(told.any()):
        rows = told.nonzero()[:, 0]
        rough = descend(
            _rows(problems, rows, torch.float32),
            None if start is None else start[rows].float(),
            gap=max(gap, _ROUGH) / 2,
            max_iterations=share,
        )
        near = rough.converged.nonzero()[:, 0]
        found.iterations[rows] = rough.iterations
        rows = rows[near]
        if len(rows):
            reached = rough.value[near].double()
            fine = polish(_rows(problems, rows), reached, gap=gap, max_iterations=share)
            found.put(rows, fine._replace(iterations=found.iterations[rows] + fine.iterations))
            far[rows] = False
    unproved = ~far & ~found.converged
    for left, guess in ((far & ~told, start), (far & told, start), (unproved, found.value)):
        rows = left.nonzero()[:, 0]
        if len(rows):
            rest = descend(
                _rows(problems, rows),
                None if guess is None else guess[rows],
                gap=gap,
                max_iterations=max_iterations - int(found.iterations[rows].max()),
            )
            found.put(rows, rest._replace(iterations=found.iterations[rows] + rest.iterations))
    return found


def _rows(problems: Problems, rows: Tensor, dtype: torch.dtype = torch.float64) -> Problems:
    return Problems(problems.observed[rows].to(dtype), problems.mask[rows].to(dtype))
