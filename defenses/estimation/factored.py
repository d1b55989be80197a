"""min over X of ||X||_* + 1/2 ||M (X - A)||^2 as a smooth problem on two factors.

||X||_* is the least 1/2 (||U||^2 + ||V||^2) over X = U V^T (Srebro, Rennie and Jaakkola 2005), so

    f(U, V) = 1/2 ||M (A - U V^T)||^2 + 1/2 (||U||^2 + ||V||^2)

has the same least value once U and V have as many columns as the solution has singular values, and
its descent needs products only. This file has what a descent (`conjugate.py`) needs: the point of each
image, the exact minimum along a direction, the proximal step, and the proof. f is not convex, and
need not be: an image leaves when its duality gap is certified, whatever the way there
(`certificate.py`). `lanes/` does the same for small matrices on a CPU.

A threshold lambda other than 1 is a matter of scale: A / lambda has the solution X / lambda.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .certificate import certified, dot, relative_gap
from .inputs import Problems
from .spectral import eigh

_COLUMNS = 16  # before the first thresholding, which finds out how many are needed
_ALIGNED = 4  # small products are up to twice slower on other numbers of columns
# The dual point lags: when a gap g can be proved, the primal value is within about g^2 of its
# optimum. The slope estimates what is left, so slope / (g^2 f) says when a proof is worth trying.
_DUE = 8.0


class Solution(NamedTuple):
    """value: (N, H, W); iterations, gap, converged: (N,)."""

    value: Tensor
    iterations: Tensor
    gap: Tensor
    converged: Tensor

    @classmethod
    def none_yet(cls, like: Tensor) -> "Solution":
        """Return the solution of problems (N, H, W) before any of them is solved."""
        count = len(like)
        return cls(
            torch.zeros_like(like),
            like.new_zeros(count, dtype=torch.long),
            like.new_ones(count),
            like.new_zeros(count, dtype=torch.bool),
        )

    def put(self, rows: Tensor | slice, found: "Solution") -> None:
        """Write the solutions of the problems at `rows`."""
        for whole, part in zip(self, found, strict=True):
            whole[rows] = part


class Pair(NamedTuple):
    """A tensor for each factor: left (n, k, H) beside U^T, right (n, k, W) beside V^T.

    Transposed, as products with wide matrices are up to twice as fast that way.
    """

    left: Tensor
    right: Tensor

    def at(self, rows: Tensor) -> "Pair":
        return Pair(self.left[rows], self.right[rows])

    def plus(self, other: "Pair", times: Tensor) -> "Pair":
        """Return self + times * other, `times` (n, 1, 1)."""
        return Pair(
            torch.addcmul(self.left, other.left, times),
            torch.addcmul(self.right, other.right, times),
        )

    def dot(self, other: "Pair") -> Tensor:
        return dot(self.left, other.left) + dot(self.right, other.right)


class Place(NamedTuple):
    """Current points of the images that are not finished."""

    image: Tensor  # (n,) index into the batch
    observed: Tensor  # (n, H, W) A
    mask: Tensor  # (n, H, W) M
    factors: Pair  # U^T, V^T
    residual: Tensor  # (n, H, W) M (A - U V^T)
    value: Tensor  # (n,) f

    def at(self, rows: Tensor) -> "Place":
        image, observed, mask, factors, residual, value = self
        return Place(
            image[rows], observed[rows], mask[rows], factors.at(rows), residual[rows], value[rows]
        )


def begin(problems: Problems, start: Tensor | None) -> Place:
    """Place each image at a fixed sketch, or one proximal step from `start` (N, H, W)."""
    observed, mask = problems
    if start is None:
        factors = _sketched(observed, mask)
    else:
        factors = _shrunk(torch.addcmul(start, mask, observed - start))
    return stand(torch.arange(len(observed), device=observed.device), observed, mask, factors)


def stand(image: Tensor, observed: Tensor, mask: Tensor, factors: Pair) -> Place:
    """Return the point at `factors`, with residual and value computed afresh."""
    residual = _residual(observed, mask, factors)
    value = (dot(residual, residual) + factors.dot(factors)) / 2
    return Place(image, observed, mask, factors, residual, value)


def gradient(place: Place) -> Pair:
    left, right = place.factors
    return Pair(
        torch.baddbmm(left, right, place.residual.mT, alpha=-1),
        torch.baddbmm(right, left, place.residual, alpha=-1),
    )


def preconditioners(factors: Pair) -> Pair:
    """Return -(V^T V + 1)^-1 for U and -(U^T U + 1)^-1 for V, (n, k, k) each."""
    return Pair(_minus_inverse(factors.right), _minus_inverse(factors.left))


def preconditioned(by: Pair, gradient: Pair) -> Pair:
    """Return the preconditioned direction of steepest descent."""
    return Pair(by.left @ gradient.left, by.right @ gradient.right)


def along(factors: Pair, direction: Pair, mask: Tensor) -> Tensor:
    """Return the part of M U V^T that is linear in a step along `direction`, (n, H, W)."""
    (left, right), (across, down) = factors, direction
    return torch.bmm(left.mT, down).baddbmm_(across.mT, right).mul_(mask)


def move(place: Place, direction: Pair, descent: Tensor) -> Place:
    """Move to the minimum of f along `direction`, whose slope `descent` (n,) is not above 0."""
    linear = along(place.factors, direction, place.mask)
    square = torch.bmm(direction.left.mT, direction.right).mul_(place.mask)
    bend = dot(linear, linear) - 2 * dot(place.residual, square) + direction.dot(direction)
    slopes = (descent, bend, 3 * dot(linear, square), 2 * dot(square, square))
    length, change = _quartic_minimum(torch.stack(slopes, 1))
    by = length[:, None, None]
    return place._replace(
        factors=place.factors.plus(direction, by),
        residual=place.residual.addcmul(linear, by, value=-1).addcmul_(square, by * by, value=-1),
        value=place.value + change,
    )


def threshold(place: Place) -> Place:
    """Take the proximal step X <- SVT(X + M (A - X)).

    It balances the factors, drops the columns that the solution does not need and adds those that
    it does. Like `move`, it never increases f.
    """
    left, right = place.factors
    factors = _shrunk(torch.baddbmm(place.residual, left.mT, right))
    return stand(place.image, place.observed, place.mask, factors)


def due(place: Place, slope: Tensor, gap: float) -> Tensor:
    """Return the indices into `place` of images whose slope (n,) makes a proof worth trying."""
    enough = (gap**2 * place.value).clamp_min(torch.finfo(slope.dtype).tiny)
    return (slope <= _DUE * enough).nonzero()[:, 0]


def settle(place: Place, tried: Tensor, found: Solution, step: int, gap: float) -> Tensor:
    """Enter images at `tried` proved to be within `gap` into `found`; return the indices of the others."""
    candidates = place.at(tried)
    passed = certified(*_evidence(candidates), gap)
    proved = candidates.at(passed.nonzero()[:, 0])
    _record(proved, found, step)
    found.gap[proved.image] = gap
    found.converged[proved.image] = True
    stays = torch.ones_like(place.image, dtype=torch.bool)
    stays[tried] = ~passed
    return stays.nonzero()[:, 0]


def give_up(place: Place, found: Solution, step: int) -> None:
    """Enter images that ran out of iterations into `found`, with the gap that they reached."""
    if len(place.image):
        _record(place, found, step)
        found.gap[place.image] = relative_gap(*_evidence(place))


def _evidence(place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The running residual has gathered rounding errors: the proof is on a fresh one.
    residual = _residual(place.observed, place.mask, place.factors)
    nuclear = place.factors.dot(place.factors) / 2  # at least the nuclear norm of U V^T
    return place.observed, residual, torch.ones_like(place.value), nuclear


def _record(place: Place, found: Solution, step: int) -> None:
    left, right = place.factors
    found.value[place.image] = left.mT @ right
    found.iterations[place.image] = step


def _residual(observed: Tensor, mask: Tensor, factors: Pair) -> Tensor:
    """Return M (A - U V^T)."""
    return torch.addcmul(observed, mask, torch.bmm(factors.left.mT, factors.right), value=-1)


def _shrunk(point: Tensor) -> Pair:
    """Return the SVT of (n, H, W) by 1 as balanced factors, with as few columns as the batch needs.

    Images of lower rank than others get columns of zeros, which stay zero.
    """
    height = point.shape[1]
    squares, basis = eigh(point @ point.mT)
    singular = squares.clamp_min(0).sqrt()
    kept = (singular - 1).clamp_min(0)
    needed = max(1, int((kept > 0).sum(1).max()))
    columns = min(height, -(-needed // _ALIGNED) * _ALIGNED)
    basis, singular, kept = (part[..., -columns:] for part in (basis, singular, kept))
    size, tiny = kept.sqrt(), torch.finfo(singular.dtype).tiny
    left = basis.mT.contiguous()
    return Pair(
        left * size[:, :, None],
        (left * (size / singular.clamp_min(tiny))[:, :, None]) @ point,
    )


def _sketched(observed: Tensor, mask: Tensor) -> Pair:
    """Run two rounds of alternating least squares from a fixed sketch, as if p * A were observed."""
    weight = mask.mean((1, 2))[:, None, None].sqrt()
    right = sketch(observed).expand(len(observed), -1, -1)
    for _ in range(2):
        left = _minus_inverse(weight * right).neg_() @ (right @ observed.mT)
        right = _minus_inverse(weight * left).neg_() @ (left @ observed)
    tiny = torch.finfo(observed.dtype).tiny
    ratio = dot(left, left).clamp_min(tiny) / dot(right, right).clamp_min(tiny)
    balance = ratio[:, None, None] ** 0.25
    return Pair(left / balance, right * balance)


def sketch(like: Tensor) -> Tensor:
    """Return a fixed random (k, W) start for (N, H, W), the same for each image, batch and device."""
    height, width = like.shape[1:]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(width, min(_COLUMNS, height), generator=generator, dtype=torch.float64)
    start: Tensor = (numbers.mT / width**0.5).to(like)
    return start


def _minus_inverse(factor: Tensor) -> Tensor:
    """Return -(factor factor^T + 1)^-1 of (n, k, ...) by Cholesky, without waiting for a GPU."""
    identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky_ex(factor @ factor.mT + identity).L
    half = torch.linalg.solve_triangular(root, identity, upper=False)
    return torch.bmm(half.mT, half).neg_()


def _quartic_minimum(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise over t > 0 the quartic with derivative c1 + c2 t + c3 t^2 + c4 t^3, c1 <= 0.

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
