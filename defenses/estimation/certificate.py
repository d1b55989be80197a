"""Bound the distance of a candidate from the optimum by a dual point.

    primal  P(X) = lambda ||X||_* + 1/2 ||R||^2,      R = M (A - X)
    dual    D(Y) = <Y, A> - 1/2 ||Y||^2               for Y zero off the mask, ||Y||_2 <= lambda

D(Y) <= min P for every such Y (Fenchel), so P(X) - D(Y) bounds the distance of P(X) from the
optimum. Y = s R is admissible when s ||R||_2 <= lambda, which a Cholesky factorisation of
(lambda / s)^2 I - R R^T decides without a spectrum: it exists exactly when that matrix is positive
definite. Nothing depends on how X was found.
"""

import torch
from torch import Tensor

from .spectral import largest


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of matrices, (n, H, W) x (n, H, W) -> (n,)."""
    products: Tensor = (a * b).sum((1, 2))
    return products


def certified(
    observed: Tensor, residual: Tensor, shrinkage: Tensor, nuclear: Tensor, gap: float
) -> Tensor:
    """Return (n,) bool: true where the relative duality gap is proved to be at most `gap`.

    nuclear: (n,), the nuclear norm of X or anything above it.
    """
    energy, reach = dot(residual, residual), dot(residual, observed)
    primal = energy / 2 + shrinkage * nuclear
    # The least s with D(s R) >= (1 - gap) P, a root of a quadratic; then test s ||R||_2 <= lambda.
    root = reach.square() - 2 * energy * (1 - gap) * primal
    scale = 2 * (1 - gap) * primal / (reach + root.clamp_min(0).sqrt())
    bound = (shrinkage / scale).square()
    identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
    test = torch.baddbmm(bound[:, None, None] * identity, residual, residual.mT, alpha=-1)
    feasible: Tensor = torch.linalg.cholesky_ex(test).info == 0
    nothing: Tensor = primal <= torch.finfo(primal.dtype).tiny  # X = 0 and A = 0
    return nothing | (feasible & (root >= 0) & (reach > 0))


def relative_gap(observed: Tensor, residual: Tensor, shrinkage: Tensor, nuclear: Tensor) -> Tensor:
    """Return the relative duality gap at the best s, (n,), in [0, 1]; takes eigenvalues, once."""
    energy, reach = dot(residual, residual), dot(residual, observed)
    primal = energy / 2 + shrinkage * nuclear
    tiny = torch.finfo(primal.dtype).tiny
    scale = torch.minimum(
        shrinkage / largest(residual).clamp_min(tiny), reach / energy.clamp_min(tiny)
    )
    scale = scale.clamp_min(0)
    dual = scale * reach - scale.square() * energy / 2
    gap: Tensor = 1 - dual / primal.clamp_min(tiny)
    return torch.where(primal <= tiny, 0, gap.clamp(0, 1))
