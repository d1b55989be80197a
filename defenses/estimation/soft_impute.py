"""Soft-Impute (Mazumder, Hastie and Tibshirani 2010)."""

import torch
from torch import Tensor

from .certificate import dot, relative_gap
from .completion import Solver, as_estimate, certified_solver, complete
from .estimate import Estimate
from .factored import Solution
from .inputs import Problems, check_stopping, chunk_of, per_image, prepare
from .spectral import largest, shrink


def soft_impute(
    observed: Tensor,
    mask: Tensor,
    *,
    shrinkage: float | Tensor | None = None,
    keep_observed: bool = False,
    gap: float = 1e-3,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    path: int = 1,
    chunk: int | None = None,
) -> Estimate:
    """Minimise shrinkage ||X||_* + 1/2 ||M (X - A)||^2 over X.

    observed, mask, chunk: as for `nuclear_norm`.
    shrinkage: above 0, one number or one an image, (...). None takes the largest singular value of
        the zero-filled matrix over 50, ME-Net's choice.
    keep_observed: return the observed entries verbatim, as ME-Net's released code does; an attack's
        perturbation of them then passes unchanged.
    gap: the relative duality gap to prove before an image stops, as for `nuclear_norm`.
    tolerance: the paper's rule instead (ME-Net: 1e-3): iterate X <- SVT(M A + (1 - M) X) from zero
        until the unknown entries change by less than this fraction. It stops short of the optimum
        and takes longer; `gap` in the result then says how far it got.
    max_iterations: None takes 1000, or 100 (ME-Net's) where `tolerance` is given; at each threshold.
    path: how many thresholds to solve for, each from the solution before (Mazumder et al.,
        Algorithm 1): in equal ratios from the largest singular value, where the solution is 0, down
        to `shrinkage`. 1 solves for `shrinkage` alone. `iterations` counts all of them.

    The value has exact gradients with respect to `observed`, through the default shrinkage too, and
    to `shrinkage`: those of the optimum (`implicit.py`), also where the paper's rule stops early.
    """
    problems = prepare(observed, mask)
    if shrinkage is None:
        # An image with nothing observed has no scale, and the answer 0 whatever the threshold.
        weakest = torch.finfo(observed.dtype).tiny ** 0.5
        thresholds = (largest(problems.observed) / 50).clamp_min(weakest)
    else:
        thresholds = per_image(shrinkage, observed, "shrinkage")
    solver: Solver
    if tolerance is None:
        limit = 1000 if max_iterations is None else max_iterations
        check_stopping(gap, limit, observed.dtype)
        solver = certified_solver(gap, limit)
    else:
        limit = 100 if max_iterations is None else max_iterations
        check_stopping(tolerance, limit, observed.dtype, "tolerance")
        solver = _paper_solver(tolerance, limit)
    if path < 1:
        raise ValueError(f"path is {path}; allowed: a number of thresholds, at least 1")
    if path > 1:
        solver = _along_path(solver, path)
    found = complete(problems, thresholds, solver, chunk_of(chunk, problems))
    if keep_observed:
        found = found._replace(value=torch.where(problems.mask > 0, problems.observed, found.value))
    return as_estimate(found, observed.shape)


def _along_path(solver: Solver, length: int) -> Solver:
    """Return a solver at `length` thresholds, from the largest singular value down, warm-started."""

    def along(problems: Problems, shrinkage: Tensor, start: Tensor | None = None) -> Solution:
        top = torch.maximum(largest(problems.observed), shrinkage)
        iterations = torch.zeros_like(shrinkage, dtype=torch.long)
        for step in range(1, length + 1):
            found = solver(problems, top * (shrinkage / top) ** (step / length), start)
            iterations, start = iterations + found.iterations, found.value
        return found._replace(iterations=iterations)

    return along


def _paper_solver(tolerance: float, max_iterations: int) -> Solver:
    """Return the inner loop of Algorithm 1 of Mazumder et al.; it starts from zero or the guess."""

    def solver(problems: Problems, shrinkage: Tensor, start: Tensor | None = None) -> Solution:
        found = Solution.none_yet(problems.observed)
        nuclear = torch.zeros_like(shrinkage)
        rows = torch.arange(len(shrinkage), device=shrinkage.device)
        observed, hidden, threshold = problems.observed, 1 - problems.mask, shrinkage
        unknown = torch.zeros_like(observed) if start is None else hidden * start  # (1 - M) X
        for step in range(1, max_iterations + 1):
            value, total = shrink(observed + unknown, threshold)
            filled = hidden * value
            change, before = filled - unknown, dot(unknown, unknown)
            stop = dot(change, change) <= tolerance**2 * before
            unknown = filled
            if step == max_iterations or bool(stop.any()):
                leave = stop if step < max_iterations else torch.ones_like(stop)
                at = rows[leave]
                found.value[at], nuclear[at] = value[leave], total[leave]
                found.iterations[at], found.converged[at] = step, stop[leave]
                go = ~leave
                rows, observed, hidden = rows[go], observed[go], hidden[go]
                threshold, unknown = threshold[go], unknown[go]
                if not len(rows):
                    break
        residual = problems.observed - problems.mask * found.value
        gap = relative_gap(problems.observed, residual, shrinkage, nuclear)
        return found._replace(gap=gap)

    return solver
