"""min over X of lambda ||X||_* + 1/2 ||M (X - A)||^2, by descent on factors, with a certificate.

||X||_* is the least 1/2 (||U||^2 + ||V||^2) over X = U V^T (Srebro, Rennie and Jaakkola 2005), so

    f(U, V) = 1/2 ||M (A - U V^T)||^2 + lambda/2 (||U||^2 + ||V||^2)

has the same least value once U and V have as many columns as the solution has singular values, and
its descent needs products only: Polak-Ribiere conjugate gradients, preconditioned by
(V^T V + lambda)^-1 on U and (U^T U + lambda)^-1 on V, with the exact minimum of the quartic along
each direction. Now and then a proximal step, a singular-value thresholding of
X + M (A - X), balances the factors, drops the columns that the solution does not need and adds
those that it does. Both kinds of step never increase f. f is not convex, and need not be: an image
leaves the loop when its duality gap is certified, whatever the way there (`certificate.py`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .certificate import certified, dot, relative_gap
from .inputs import Problems

_COLUMNS = 16  # before the first thresholding, which finds out how many are needed
_FIRST = 4  # step of the first thresholding; the next come after 4, 8, 16 times as many more
_ALIGNED = 4  # small products are up to twice slower on other numbers of columns
_CHECK_EVERY = 2
# The dual point lags: when a gap g can be proved, the primal value is within about g^2 of its
# optimum. The slope estimates what is left, so slope / (g^2 f) says when a proof is worth trying.
_DUE = 8.0


class Solution(NamedTuple):
    """value: (N, H, W); iterations, gap, converged: (N,)."""

    value: Tensor
    iterations: Tensor
    gap: Tensor
    converged: Tensor


class _State(NamedTuple):
    """The images still at work. U is factors[:, :H], V is factors[:, H:]."""

    image: Tensor  # (n,) index into the batch
    observed: Tensor  # (n, H, W)
    mask: Tensor  # (n, H, W)
    shrinkage: Tensor  # (n,)
    residual: Tensor  # (n, H, W) M (A - U V^T)
    factors: Tensor  # (n, H + W, k)
    direction: Tensor  # (n, H + W, k)
    gradient: Tensor  # (n, H + W, k)
    slope: Tensor  # (n,) <gradient, preconditioned gradient>; infinite before the first step
    value: Tensor  # (n,) f
    inverse: Tensor  # (n, 2k, k) preconditioners of U and of V

    def at(self, rows: Tensor) -> "_State":
        return _State(*(field[rows] for field in self))


def solve(
    problems: Problems,
    shrinkage: Tensor,
    start: Tensor | None = None,
    *,
    gap: float,
    max_iterations: int,
) -> Solution:
    """Problems of (N, H, W) with H <= W, shrinkage (N,) above 0; no image depends on another.

    start: (N, H, W), a guess of the solution: a proximal step from there makes the first factors.
    """
    observed, mask = problems
    found = Solution(
        torch.zeros_like(observed),
        torch.zeros_like(shrinkage, dtype=torch.long),
        torch.ones_like(shrinkage),
        torch.zeros_like(shrinkage, dtype=torch.bool),
    )
    state = _begin(observed, mask, shrinkage, start)
    step = since = 0
    pause = _FIRST
    while len(state.image):
        state = _step(state, renew=since < 5 or since % 3 == 0)
        step, since = step + 1, since + 1
        if since == pause:
            state = _threshold(state)
            since, pause = 0, max(2 * pause, 4 * _FIRST)
        exhausted = step >= max_iterations
        if step % _CHECK_EVERY and not exhausted:
            continue
        enough = (gap**2 * state.value).clamp_min(torch.finfo(state.value.dtype).tiny)
        due = ((state.slope <= _DUE * enough) | exhausted).nonzero()[:, 0]
        if not len(due):
            continue
        stays = torch.ones_like(state.image, dtype=torch.bool)
        stays[due] = ~_certify(state.at(due), found, step, gap)
        state = state.at(stays.nonzero()[:, 0])
        if exhausted:
            _give_up(state, found, step)
            break
    return found


def _begin(observed: Tensor, mask: Tensor, shrinkage: Tensor, start: Tensor | None) -> _State:
    if start is None:
        factors = _sketched(observed, mask, shrinkage, min(_COLUMNS, observed.shape[1]))
    else:
        factors = _shrunk(torch.addcmul(start, mask, observed - start), shrinkage)
    everyone = torch.arange(len(observed), device=observed.device)
    return _fresh(everyone, observed, mask, shrinkage, factors)


def _sketched(observed: Tensor, mask: Tensor, shrinkage: Tensor, columns: int) -> Tensor:
    """Two rounds of alternating least squares from a fixed sketch, as if p * A were observed."""
    count, _, width = observed.shape
    fraction = mask.mean((1, 2))[:, None, None]
    right = _sketch(observed, columns).expand(count, width, columns)
    for _ in range(2):
        left = observed @ right @ _inverse(fraction * (right.mT @ right), shrinkage)
        right = observed.mT @ left @ _inverse(fraction * (left.mT @ left), shrinkage)
    tiny = torch.finfo(observed.dtype).tiny
    ratio = dot(left, left).clamp_min(tiny) / dot(right, right).clamp_min(tiny)
    balance = ratio[:, None, None] ** 0.25
    return torch.cat((left / balance, right * balance), 1)


def _threshold(state: _State) -> _State:
    """The proximal step X <- SVT(X + M (A - X))."""
    height = state.observed.shape[1]
    left, right = state.factors[:, :height], state.factors[:, height:]
    factors = _shrunk(torch.baddbmm(state.residual, left, right.mT), state.shrinkage)
    return _fresh(state.image, state.observed, state.mask, state.shrinkage, factors)


def _shrunk(point: Tensor, shrinkage: Tensor) -> Tensor:
    """SVT of (n, H, W) by (n,) as balanced factors (n, H + W, k), k no more than the batch needs.

    Images of lower rank than others get columns of zeros, which stay zero.
    """
    height = point.shape[1]
    squares, basis = torch.linalg.eigh(point @ point.mT)
    singular = squares.clamp_min(0).sqrt()
    kept = (singular - shrinkage[:, None]).clamp_min(0)
    needed = max(1, int((kept > 0).sum(1).max()))
    columns = min(height, -(-needed // _ALIGNED) * _ALIGNED)
    basis, singular, kept = (part[..., -columns:] for part in (basis, singular, kept))
    size = kept.sqrt()[:, None, :]
    tiny = torch.finfo(singular.dtype).tiny
    across = point.mT @ (basis * (size / singular[:, None, :].clamp_min(tiny)))
    return torch.cat((basis * size, across), 1)


def _step(state: _State, renew: bool) -> _State:
    """One conjugate-gradient step; `renew` computes the preconditioners afresh."""
    height, columns = state.observed.shape[1], state.factors.shape[2]
    factors, shrinkage, residual = state.factors, state.shrinkage, state.residual
    left, right = factors[:, :height], factors[:, height:]
    gradient = factors * shrinkage[:, None, None]
    gradient[:, :height] -= residual @ right
    gradient[:, height:] -= residual.mT @ left

    for_left, for_right = state.inverse[:, :columns], state.inverse[:, columns:]
    if renew:
        for_left = _inverse(right.mT @ right, shrinkage)
        for_right = _inverse(left.mT @ left, shrinkage)
    steepest = torch.cat((gradient[:, :height] @ for_left, gradient[:, height:] @ for_right), 1)

    slope = dot(gradient, steepest)
    weight = ((slope - dot(state.gradient, steepest)) / state.slope).clamp_min(0)
    descent = weight * dot(gradient, state.direction) - slope
    restart = descent >= 0  # only where the direction would not descend
    weight = torch.where(restart, 0, weight)
    descent = torch.where(restart, -slope, descent)
    direction = torch.addcmul(-steepest, state.direction, weight[:, None, None])

    along_left, along_right = direction[:, :height], direction[:, height:]
    linear = torch.bmm(left, along_right.mT).baddbmm_(along_left, right.mT).mul_(state.mask)
    square = torch.bmm(along_left, along_right.mT).mul_(state.mask)
    bend = dot(linear, linear) - 2 * dot(residual, square) + shrinkage * dot(direction, direction)
    slopes = (descent, bend, 3 * dot(linear, square), 2 * dot(square, square))
    length, change = _quartic_minimum(torch.stack(slopes, 1))
    by = length[:, None, None]
    return state._replace(
        residual=residual.addcmul(linear, by, value=-1).addcmul_(square, by * by, value=-1),
        factors=torch.addcmul(factors, direction, by),
        direction=direction,
        gradient=gradient,
        slope=slope.clamp_min(torch.finfo(slope.dtype).tiny),
        value=state.value + change,
        inverse=torch.cat((for_left, for_right), 1) if renew else state.inverse,
    )


def _quartic_minimum(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """A minimum over t > 0 of the quartic with derivative c1 + c2 t + c3 t^2 + c4 t^3, c1 <= 0.

    slopes: (n, 4), the coefficients. Returns t and the quartic there less its value at 0, (n,).
    Newton on the derivative; where that does not descend, the minimum over 0 < t <= 1 of a
    quadratic above the quartic, which does.
    """
    tiny = torch.finfo(slopes.dtype).tiny
    degrees = torch.arange(4, dtype=slopes.dtype, device=slopes.device)
    bends, integral = slopes * degrees, slopes / (degrees + 1)
    first, second = slopes[:, 0], slopes[:, 1]
    t = torch.where(second > 0, -first / second.clamp_min(tiny), 1.0).clamp(tiny, 3)
    for _ in range(2):
        powers = t[:, None] ** degrees
        bend = (bends * powers).sum(1) / t
        newton = t - (slopes * powers).sum(1) / bend.clamp_min(tiny)
        t = torch.where(bend > 0, newton, t).clamp(tiny, 5)
    cautious = (-first / (2 * integral[:, 1:].abs().sum(1)).clamp_min(tiny)).clamp_max(1)
    change = (integral * t[:, None] ** (degrees + 1)).sum(1)
    t = torch.where(change < 0, t, cautious)
    return t, (integral * t[:, None] ** (degrees + 1)).sum(1)


def _certify(state: _State, found: Solution, step: int, gap: float) -> Tensor:
    """Which images of `state` are proved to be within `gap`, (n,) bool; they enter `found`."""
    # The running residual has gathered rounding errors: the proof is on a fresh one.
    passed = certified(state.observed, _residual(state), state.shrinkage, _penalty(state), gap)
    proved = state.at(passed.nonzero()[:, 0])
    _record(proved, found, step)
    found.gap[proved.image] = gap
    found.converged[proved.image] = True
    return passed


def _give_up(state: _State, found: Solution, step: int) -> None:
    """Images that ran out of iterations enter `found` with the gap that they reached."""
    if not len(state.image):
        return
    _record(state, found, step)
    found.gap[state.image] = relative_gap(
        state.observed, _residual(state), state.shrinkage, _penalty(state)
    )


def _record(state: _State, found: Solution, step: int) -> None:
    height = state.observed.shape[1]
    found.value[state.image] = state.factors[:, :height] @ state.factors[:, height:].mT
    found.iterations[state.image] = step


def _fresh(
    image: Tensor, observed: Tensor, mask: Tensor, shrinkage: Tensor, factors: Tensor
) -> _State:
    """A state before its first step: the weight of the direction so far is zero."""
    columns = factors.shape[2]
    state = _State(
        image=image,
        observed=observed,
        mask=mask,
        shrinkage=shrinkage,
        residual=observed,
        factors=factors,
        direction=torch.zeros_like(factors),
        gradient=torch.zeros_like(factors),
        slope=torch.full_like(shrinkage, torch.inf),
        value=shrinkage,
        inverse=factors.new_zeros(len(factors), 2 * columns, columns),
    )
    residual = _residual(state)
    value = dot(residual, residual) / 2 + shrinkage * _penalty(state)
    return state._replace(residual=residual, value=value)


def _residual(state: _State) -> Tensor:
    """M (A - U V^T)."""
    height = state.observed.shape[1]
    product = torch.bmm(state.factors[:, :height], state.factors[:, height:].mT)
    return torch.addcmul(state.observed, state.mask, product, value=-1)


def _penalty(state: _State) -> Tensor:
    """1/2 (||U||^2 + ||V||^2), at least the nuclear norm of U V^T."""
    return dot(state.factors, state.factors) / 2


def _inverse(gram: Tensor, shrinkage: Tensor) -> Tensor:
    """(gram + shrinkage I)^-1 of (n, k, k) through Cholesky; nothing here waits for a GPU."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root = torch.linalg.cholesky_ex(gram + shrinkage[:, None, None] * identity).L
    half = torch.linalg.solve_triangular(root, identity, upper=False)
    inverse: Tensor = half.mT @ half
    return inverse


def _sketch(like: Tensor, columns: int) -> Tensor:
    """A fixed random (W, columns) start, the same for every image, batch and device."""
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(like.shape[-1], columns, generator=generator, dtype=torch.float64)
    start: Tensor = (sketch / like.shape[-1] ** 0.5).to(like)
    return start
