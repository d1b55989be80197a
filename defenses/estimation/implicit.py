"""Exact gradients of min over X of lambda ||X||_* + 1/2 ||M (X - A)||^2 through its optimum.

At the optimum X = S(Z), Z = X + M (A - X), S the singular-value thresholding by lambda. With J the
derivative of S at Z, symmetric and between 0 and 1, and P = 1 - M,

    dX = J (P dX + M dA) - T dlambda,        T = sum of u_i v_i^T over the values above lambda,

so a gradient G at X gives w = (I - P J)^-1 G, then M J w at A and -<T, w> at lambda. On the
observed entries w is G; on the others it solves (I - P J P) w = P (G + J M G), positive definite
where the optimum is unique: conjugate gradients. No iterate is stored and no step is unrolled.
"""

from typing import Any

import torch
from torch import Tensor

from .certificate import dot
from .inputs import in_chunks
from .spectral import Derivative, decompose, shrink_derivative

_ITERATIONS = 300
_TOLERANCE = 1e-9  # of the right-hand side's norm
_FLAT = 1e-7  # of the largest curvature there can be, 1


class _AtOptimum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        observed: Tensor,
        shrinkage: Tensor,
        mask: Tensor,
        value: Tensor,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(observed, shrinkage, mask, value)
        ctx.chunk = chunk
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        saved = (*ctx.saved_tensors, gradient)
        parts = [
            _adjoint(*pieces)
            for pieces in zip(*(in_chunks(field, ctx.chunk) for field in saved), strict=True)
        ]
        at_observed, at_shrinkage = (torch.cat(part) for part in zip(*parts, strict=True))
        return at_observed, at_shrinkage, None, None, None


def attach(observed: Tensor, shrinkage: Tensor, mask: Tensor, value: Tensor, chunk: int) -> Tensor:
    """Return `value` (N, H, W) with its gradient with respect to `observed` and `shrinkage` (N,)."""
    attached: Tensor = _AtOptimum.apply(observed, shrinkage, mask, value, chunk)
    return attached


def _adjoint(
    observed: Tensor, shrinkage: Tensor, mask: Tensor, value: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    fixed_point = value + observed - mask * value
    spectrum = decompose(fixed_point)
    derivative = shrink_derivative(spectrum, shrinkage.double())
    seen, given = mask.double(), gradient.double()
    hidden = 1 - seen
    solved = seen * given + _solve(derivative, hidden, hidden * (given + derivative(seen * given)))
    kept = (spectrum.singular > shrinkage[:, None]).double()
    directions = (spectrum.left * kept[:, None, :]) @ spectrum.right
    return (
        (seen * derivative(solved)).to(gradient.dtype),
        -dot(directions, solved).to(gradient.dtype),
    )


def _solve(derivative: Derivative, hidden: Tensor, right: Tensor) -> Tensor:
    """Return (I - P J P)^-1 right on the hidden entries, each image to its own accuracy.

    Where the optimum is not unique the system is singular and no derivative exists: the solve stops
    before the flat direction, which leaves a finite stand-in.
    """
    solution = torch.zeros_like(right)
    residual = direction = right
    energy = start = dot(right, right)
    tiny = torch.finfo(right.dtype).tiny
    active = torch.ones_like(energy, dtype=torch.bool)
    for step in range(_ITERATIONS):
        active &= energy > _TOLERANCE**2 * start
        if step % 10 == 0 and not bool(active.any()):
            break
        image = direction - hidden * derivative(direction)
        curvature = dot(direction, image)
        active &= curvature > _FLAT * dot(direction, direction)
        length = torch.where(active, energy / curvature.clamp_min(tiny), 0)
        solution = torch.addcmul(solution, direction, length[:, None, None])
        residual = torch.addcmul(residual, image, length[:, None, None], value=-1)
        after = torch.where(active, dot(residual, residual), energy)
        weight = torch.where(active, after / energy.clamp_min(tiny), 0)
        direction = torch.addcmul(residual, direction, weight[:, None, None])
        energy = after
    return solution
