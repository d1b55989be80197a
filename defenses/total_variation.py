"""Total-variation minimisation from some pixels of each image, batched, with certificates.

Each channel of each image is one problem (Rudin, Osher, Fatemi 1992; Guo et al. 2018, section 4.2,
here with the squared error):

    minimise over z    sum over the kept pixels of (z - x)**2  +  weight * TV(z)

Isotropic TV sums the Euclidean length of each pixel's (down, right) difference, anisotropic TV its
absolute values. Channels do not share anything. Pixels beyond the border do not exist (no
difference there).

The solver is the primal-dual iteration of Chambolle and Pock (2011, algorithm 1), over-relaxed by
1.9 (Condat 2013, theorem 3.2). It runs in coordinates in which every problem has pixel range one
and dual radius one, so that one pair of step sizes serves them all. Batches lie last in memory, (H,
W, M): every difference then runs along contiguous memory.

The certificate: some minimiser lies between the smallest and the largest kept pixel, so the dual
problem may be taken over that box. There every dual point has a finite value below the optimum, and
`gap`, the objective less the dual value, bounds from above what is missing to the optimum.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

RELAXATION = 1.9
BALANCE = 0.06
"""Ratio of the step sizes in unit coordinates: the best on photographs and on digits."""
PRIMAL_STEP = BALANCE / math.sqrt(8.0)  # the squared norm of the difference operator is below 8
DUAL_STEP = 1.0 / (BALANCE * math.sqrt(8.0))
CHECK_EVERY = 10
SHRINK_AT = 0.75
FLAT = 1e-6
BEYOND = 1e6
PRECISION = 1e-6
"""Squared error per pixel (a quarter of a grey level) below which an objective counts as this."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The images (N, C, H, W), and for each channel (N, C): `objective` and `gap` (float64, in
    squared pixel values), `iterations`, and `converged`, whether the gap reached the tolerance."""

    images: Tensor
    objective: Tensor
    gap: Tensor
    iterations: Tensor
    converged: Tensor


def objective(
    candidate: Tensor,
    images: Tensor,
    kept: Tensor,
    *,
    weight: float | Tensor = 0.03,
    isotropic: bool = True,
) -> Tensor:
    """Return the objective (N, C) float64 at `candidate` (N, C, H, W); arguments as in `minimise`."""
    candidate, images = candidate.double(), images.double()
    error = torch.where(kept, (candidate - images) ** 2, 0.0).sum(dim=(-2, -1))
    down = torch.zeros_like(candidate)
    right = torch.zeros_like(candidate)
    down[..., :-1, :] = candidate[..., 1:, :] - candidate[..., :-1, :]
    right[..., :-1] = candidate[..., 1:] - candidate[..., :-1]
    lengths = torch.hypot(down, right) if isotropic else down.abs() + right.abs()
    return error + weight * lengths.sum(dim=(-2, -1))


@torch.no_grad()
def minimise(
    images: Tensor,
    kept: Tensor,
    *,
    weight: float | Tensor = 0.03,
    isotropic: bool = True,
    tolerance: float = 1e-3,
    max_iterations: int = 20_000,
    chunk: int | None = None,
) -> Reconstruction:
    """Return the images of least total variation that agree with the kept pixels.

    Args:
        images: (N, C, H, W) float; the values of dropped pixels are never read.
        kept: (N, 1, H, W) or (N, C, H, W) bool. A channel without a kept pixel comes back as 0.5.
        weight: of the total variation, positive; or one for each channel, broadcastable to (N, C).
        isotropic: which total variation.
        tolerance: a channel is finished when gap <= tolerance * max(objective, 1e-6 * H * W).
        max_iterations: a channel not finished by then comes back as it is, `converged` false.
        chunk: how many channels to work on at once; None suits the device.

    Raises:
        ValueError: a weight, tolerance or limit that is not positive.
    """
    if tolerance <= 0 or max_iterations < 1:
        raise ValueError(
            f"tolerance {tolerance}, max_iterations {max_iterations}: must be positive"
        )
    count, channels, height, width = images.shape
    problems = count * channels
    x = images.reshape(problems, height, width)
    mask = kept.expand_as(images).reshape(problems, height, width)
    weights = torch.as_tensor(weight, dtype=torch.float64, device=images.device)
    weights = weights.expand(count, channels).reshape(problems)
    if not bool((weights > 0).all()):
        raise ValueError("the weight of the total variation must be positive")
    out = Reconstruction(
        images=torch.empty_like(x),
        objective=torch.zeros(problems, dtype=torch.float64, device=x.device),
        gap=torch.zeros(problems, dtype=torch.float64, device=x.device),
        iterations=torch.zeros(problems, dtype=torch.int64, device=x.device),
        converged=torch.zeros(problems, dtype=torch.bool, device=x.device),
    )
    if chunk is None:
        budget = 1 << 17 if x.device.type == "cpu" else 1 << 26
        chunk = max(1, budget // (height * width))
    for start in range(0, problems, chunk):
        here = slice(start, start + chunk)
        part = Reconstruction(
            *(getattr(out, field.name)[here] for field in dataclasses.fields(out))
        )
        work = _prepare(x[here], mask[here], weights[here])
        _solve(work, isotropic, tolerance, max_iterations, part)
    shape = (count, channels)
    return Reconstruction(
        images=out.images.reshape(images.shape),
        objective=out.objective.reshape(shape),
        gap=out.gap.reshape(shape),
        iterations=out.iterations.reshape(shape),
        converged=out.converged.reshape(shape),
    )


@dataclasses.dataclass
class _Work:
    """Unfinished problems in unit coordinates: (z - shift) / scale, duals in units of the weight.

    All are (H, W, M) but `shift`, `scale`, `low`, `high`, `ratio` and `index`, which are (M,). The
    new point and the scratch tensors are kept between steps: fresh memory costs more than
    arithmetic.
    """

    x: Tensor
    kept: Tensor
    shrink: Tensor
    target: Tensor
    z: Tensor
    down: Tensor
    right: Tensor
    new_z: Tensor
    new_down: Tensor
    new_right: Tensor
    scratch_1: Tensor
    scratch_2: Tensor
    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    ratio: Tensor
    index: Tensor

    def only(self, index: Tensor) -> _Work:
        """Return the problems at `index` alone."""
        tensors = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return _Work(*(tensor.index_select(tensor.ndim - 1, index) for tensor in tensors))


def _prepare(x: Tensor, kept: Tensor, weights: Tensor) -> _Work:
    """Set up problems (M, H, W) with weights (M,); dropped pixels start at the mean of the kept."""
    kept = kept.permute(1, 2, 0).to(x.dtype)
    x = torch.nan_to_num(x.permute(1, 2, 0)) * kept
    dropped = 1.0 - kept
    number = kept.sum(dim=(0, 1))
    some = number > 0
    shift = torch.where(some, x.sum(dim=(0, 1)) / number.clamp_min(1.0), 0.5)
    low = torch.where(some, torch.add(x, dropped, alpha=BEYOND).amin(dim=(0, 1)), shift)
    high = torch.where(some, torch.sub(x, dropped, alpha=BEYOND).amax(dim=(0, 1)), shift)
    scale = torch.where(high - low > FLAT, high - low, 1.0)
    ratio = (weights / scale.double()).to(x.dtype)
    x = (x - shift) / scale * kept
    shrink = 1.0 / (1.0 + kept * (2.0 * PRIMAL_STEP / ratio))
    return _Work(
        x=x,
        kept=kept,
        shrink=shrink,
        target=x * (1.0 - shrink),
        z=x.clone(),
        down=torch.zeros_like(x),
        right=torch.zeros_like(x),
        new_z=torch.zeros_like(x),
        new_down=torch.zeros_like(x),
        new_right=torch.zeros_like(x),
        scratch_1=dropped,
        scratch_2=torch.zeros_like(x),
        shift=shift,
        scale=scale,
        low=(low - shift) / scale,
        high=(high - shift) / scale,
        ratio=ratio,
        index=torch.arange(x.shape[2], device=x.device),
    )


def _iterate(work: _Work, isotropic: bool, steps: int) -> None:
    """Take `steps` steps in place; the last unrelaxed point is left in the `new` tensors."""
    z, down, right = work.z, work.down, work.right
    new_z, new_down, new_right = work.new_z, work.new_down, work.new_right
    pull, ahead = work.scratch_1, work.scratch_2
    for _ in range(steps):
        torch.add(down, right, out=pull)  # minus the transposed difference of the duals
        pull[1:].sub_(down[:-1])
        pull[:, 1:].sub_(right[:, :-1])
        torch.add(z, pull, alpha=PRIMAL_STEP, out=ahead)
        torch.addcmul(work.target, ahead, work.shrink, out=new_z)
        torch.lerp(z, new_z, 2.0, out=ahead)
        z.lerp_(new_z, RELAXATION)
        _differences(ahead, new_down, new_right)
        torch.add(down, new_down, alpha=DUAL_STEP, out=new_down)
        torch.add(right, new_right, alpha=DUAL_STEP, out=new_right)
        if isotropic:
            factor = torch.mul(new_down, new_down, out=pull)
            factor.addcmul_(new_right, new_right).clamp_(min=1.0).rsqrt_()
            new_down.mul_(factor)
            new_right.mul_(factor)
        else:
            new_down.clamp_(-1.0, 1.0)
            new_right.clamp_(-1.0, 1.0)
        down.lerp_(new_down, RELAXATION)
        right.lerp_(new_right, RELAXATION)


def _differences(z: Tensor, down: Tensor, right: Tensor) -> None:
    """Write each pixel's differences to the next ones below and beside it; 0 at the border."""
    torch.sub(z[1:], z[:-1], out=down[:-1])
    torch.sub(z[:, 1:], z[:, :-1], out=right[:, :-1])
    down[-1] = 0.0
    right[:, -1] = 0.0


def _certify(work: _Work, isotropic: bool) -> tuple[Tensor, Tensor]:
    """Return the objective at the new point and its gap to the dual value, (M,) float64 each.

    Both are in unit coordinates.
    """
    z, down, right = work.new_z.clamp_(work.low, work.high), work.new_down, work.new_right
    a, b = work.scratch_1, work.scratch_2
    _differences(z, a, b)
    if isotropic:
        a.mul_(a).addcmul_(b, b).sqrt_()
    else:
        a.abs_().add_(b.abs_())
    primal = _total(a) * work.ratio
    torch.sub(z, work.x, out=a).mul_(work.kept)
    primal += _total(a.mul_(a))

    slope = torch.add(down, right, out=b)
    slope[1:].sub_(down[:-1])
    slope[:, 1:].sub_(right[:, :-1])
    slope.mul_(-work.ratio)  # the transposed difference of the duals
    torch.clamp(slope, min=0.0, out=a).addcmul_(a, work.kept, value=-1.0)
    dual = _total(a) * work.low  # a dropped pixel goes to the end of the box to which it is pulled
    torch.clamp(slope, max=0.0, out=a).addcmul_(a, work.kept, value=-1.0)
    dual += _total(a) * work.high
    best = torch.add(work.x, slope, alpha=-0.5, out=a).clamp_(work.low, work.high)
    slope.mul_(best)
    best.sub_(work.x)
    dual += _total(slope.addcmul_(best, best).mul_(work.kept))
    return primal, primal - dual


def _total(values: Tensor) -> Tensor:
    """Return the sums over all pixels, (M,) float64."""
    return values.sum(dim=(0, 1), dtype=torch.float64)


def _solve(work: _Work, isotropic: bool, tolerance: float, limit: int, out: Reconstruction) -> None:
    """Solve the problems of one chunk and write them to `out`, in the chunk's order."""
    height, width, _ = work.x.shape
    open_ = torch.ones_like(work.index, dtype=torch.bool)
    done = 0
    while True:
        steps = min(CHECK_EVERY, limit - done)
        _iterate(work, isotropic, steps)
        done += steps
        value, gap = _certify(work, isotropic)
        area = work.scale.double() ** 2
        good = gap * area <= tolerance * (value * area).clamp_min(PRECISION * height * width)
        last = done >= limit
        finished = open_ & (good | last)
        if bool(finished.any()):
            at = finished.nonzero()[:, 0]
            to = work.index[at]
            out.images[to] = (work.new_z[..., at] * work.scale[at] + work.shift[at]).permute(
                2, 0, 1
            )
            out.objective[to] = (value * area)[at]
            out.gap[to] = (gap * area)[at]
            out.iterations[to] = done
            out.converged[to] = good[at]
            open_ = open_ & ~finished
        remaining = open_.nonzero()[:, 0]
        if len(remaining) == 0:
            return
        if len(remaining) <= SHRINK_AT * len(open_):
            work, open_ = work.only(remaining), open_[remaining]
