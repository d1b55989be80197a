"""The convex problem that nuclear-norm minimisation and Soft-Impute share: chunks and gradients."""

import functools
from typing import Protocol

import torch
from torch import Tensor

from .estimate import Estimate
from .factored import Solution
from .implicit import attach
from .inputs import Problems, restore
from .solver import solve


class Solver(Protocol):
    """A solver of problems at one threshold an image, (N,), from a guess (N, H, W) if there is one."""

    def __call__(
        self, problems: Problems, shrinkage: Tensor, start: Tensor | None = None
    ) -> Solution: ...


def certified_solver(gap: float, max_iterations: int) -> Solver:
    """Return a solver that stops at a relative duality gap of `gap`."""
    return functools.partial(solve, gap=gap, max_iterations=max_iterations)


def complete(problems: Problems, shrinkage: Tensor, solver: Solver, chunk: int) -> Solution:
    """Solve `chunk` images at a time; the value has exact gradients where they are asked for."""
    with torch.no_grad():
        found = Solution.none_yet(problems.observed)
        for first in range(0, len(shrinkage), chunk):
            some = slice(first, first + chunk)
            part = Problems(problems.observed[some], problems.mask[some])
            found.put(some, solver(part, shrinkage[some]))
    if torch.is_grad_enabled() and (problems.observed.requires_grad or shrinkage.requires_grad):
        value = attach(problems.observed, shrinkage, problems.mask, found.value, chunk)
        found = found._replace(value=value)
    return found


def as_estimate(found: Solution, shape: torch.Size) -> Estimate:
    """Return the solution in the caller's shape, (..., H, W)."""
    batch = shape[:-2]
    return Estimate(
        restore(found.value, shape),
        found.iterations.reshape(batch),
        found.gap.reshape(batch),
        found.converged.reshape(batch),
    )
