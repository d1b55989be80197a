"""Universal singular value thresholding (Chatterjee 2015)."""

from typing import Any, Literal

import torch
from torch import Tensor

from .estimate import Estimate
from .inputs import chunk_of, in_chunks, prepare, restore
from .spectral import cut_derivative, decompose, eigh

Rule = Literal["fixed", "threshold"]


def usvt(
    observed: Tensor,
    mask: Tensor,
    *,
    rule: Rule = "fixed",
    rank_fraction: float = 0.8,
    eta: float = 0.02,
    chunk: int | None = None,
) -> Estimate:
    """Cut the spectrum of the zero-filled matrix and divide by the observed fraction.

    observed, mask, chunk: as for `nuclear_norm`.
    rule: "fixed" keeps the largest int(rank_fraction * H) singular values, as ME-Net's released
        code does (all of them where the short side has fewer); "threshold" keeps those of at least
        (2 + eta) sqrt(long side * observed fraction), Chatterjee's rule.
    Nothing observed gives 0. `iterations` is 1 and `gap` NaN: there is no optimisation problem.

    The value has exact gradients with respect to `observed`; where a kept and a dropped singular
    value meet the derivative does not exist, and a bounded stand-in is used (`spectral.py`).
    """
    problems = prepare(observed, mask)
    if rule not in ("fixed", "threshold"):
        raise ValueError(f"rule is {rule!r}; allowed: 'fixed', 'threshold'")
    if not 0 <= rank_fraction <= 1:
        raise ValueError(f"rank_fraction is {rank_fraction}; allowed: 0 to 1")
    short, long = problems.observed.shape[-2:]
    rank = int(rank_fraction * observed.shape[-2])
    rows = chunk_of(chunk, problems)
    values = []
    for matrix, seen in zip(
        in_chunks(problems.observed, rows), in_chunks(problems.mask, rows), strict=True
    ):
        fraction = seen.mean((1, 2)).clamp_min(1 / (short * long))
        if rule == "fixed":
            bound, always = torch.full_like(fraction, torch.inf), min(rank, short)
        else:
            bound, always = (2 + eta) * (long * fraction).sqrt(), 0
        kept: Tensor = _Cut.apply(matrix, bound, always)
        values.append(kept / fraction[:, None, None])
    batch = observed.shape[:-2]
    return Estimate(
        restore(torch.cat(values), observed.shape),
        torch.ones(batch, dtype=torch.long, device=observed.device),
        torch.full(batch, torch.nan, dtype=observed.dtype, device=observed.device),
        torch.ones(batch, dtype=torch.bool, device=observed.device),
    )


class _Cut(torch.autograd.Function):
    """(N, H, W), H <= W, less the values below `bound` (N,) that are not among the `rank` largest."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, bound: Tensor, rank: int) -> Tensor:
        squares, left = eigh(matrix @ matrix.mT)
        last = squares.shape[1] - rank
        low = squares[:, :last] < bound.square()[:, None]
        ctx.save_for_backward(matrix, low)
        # Taking away the small part costs less than building the large one, and rounds less.
        smallest = left[:, :, :last]
        result: Tensor = matrix - (smallest * low[:, None, :]) @ (smallest.mT @ matrix)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        matrix, low = ctx.saved_tensors
        kept = matrix.new_ones(matrix.shape[:2], dtype=torch.float64)
        kept[:, : low.shape[1]] -= low.double()
        derivative = cut_derivative(decompose(matrix), kept)
        return derivative(gradient.double()).to(gradient.dtype), None, None
