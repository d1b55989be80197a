"""Matrix estimation on images: the defense's preprocessing, and an image's approximate rank."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .estimate import Estimate

Channels = Literal["concat", "separate"]
Backward = Literal["identity", "exact", "straight", "none"]


def to_matrix(images: Tensor, channels: Channels) -> Tensor:
    """Return (N, H, W*C), channels side by side, for concat; for separate (N, C, H, W) as it is."""
    if channels == "separate":
        return images
    n, c, h, w = images.shape
    return images.permute(0, 2, 1, 3).reshape(n, h, c * w)


def from_matrix(matrix: Tensor, shape: torch.Size, channels: Channels) -> Tensor:
    """Undo `to_matrix`; `shape` is that of the images, (N, C, H, W)."""
    if channels == "separate":
        return matrix
    n, c, h, w = shape
    return matrix.reshape(n, h, c, w).permute(0, 2, 1, 3)


def reconstruct(
    images: Tensor,
    mask: Tensor,
    *,
    estimator: Callable[[Tensor, Tensor], Estimate],
    channels: Channels = "concat",
    backward: Backward = "identity",
) -> Tensor:
    """Mask the images and rebuild them by matrix estimation (ME-Net, section 2).

    images: (N, C, H, W) in [0, 1]; mask: bool (N, C, H, W) for concat, (N, 1, H, W) for separate.
    estimator: such as `functools.partial(nuclear_norm, gap=1e-3)`.
    backward: `exact` differentiates mask, estimation and the clip to [-1, 1], which has no gradient at an
        entry that it cuts; `straight` passes the gradient through the clip as if it were not there;
        `identity` passes it past everything (BPDA, Athalye et al. 2018); `none` gives none.
    Returns (N, C, H, W) in [0, 1].
    """
    _check(images, mask, channels, backward)
    if backward == "identity":
        with torch.no_grad():
            rebuilt = _rebuild(images, mask, estimator, channels)
        return straight_through(images, rebuilt) if images.requires_grad else rebuilt
    if backward == "none":
        with torch.no_grad():
            return _rebuild(images, mask, estimator, channels)
    return _rebuild(images, mask, estimator, channels, straight=backward == "straight")


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Return `hard` with the gradient of `soft`, of the same shape."""
    passed: Tensor = _Identity.apply(soft, hard)
    return passed


def approximate_rank(images: Tensor, energy: float = 0.9) -> Tensor:
    """Return the fewest singular values that hold `energy` of the sum of squares, (N,) int64.

    ME-Net, section 2.2 and Figure 1. images: (N, C, H, W) in [0, 1]; a colour image is taken as the
    concat matrix H x (W*C). Zero for a black image.
    """
    squares = torch.linalg.svdvals(to_matrix(images, "concat").double()).square()
    held = squares.cumsum(-1)
    short = held < energy * held[:, -1:] * (1 - 1e-12)
    return torch.where(held[:, -1] > 0, short.sum(-1) + 1, 0)


def _rebuild(
    images: Tensor,
    mask: Tensor,
    estimator: Callable[[Tensor, Tensor], Estimate],
    channels: Channels,
    *,
    straight: bool = False,
) -> Tensor:
    matrix = to_matrix(2 * images - 1, channels)
    keep = to_matrix(mask, channels)
    value = estimator(matrix, keep).value
    clipped = value.clamp(-1, 1)
    if straight and value.requires_grad:
        clipped = straight_through(value, clipped.detach())
    return from_matrix((clipped + 1) / 2, images.shape, channels)


def _check(images: Tensor, mask: Tensor, channels: str, backward: str) -> None:
    if channels not in ("concat", "separate"):
        raise ValueError(f"channels is {channels!r}; allowed: 'concat', 'separate'")
    if backward not in ("identity", "exact", "straight", "none"):
        raise ValueError(
            f"backward is {backward!r}; allowed: 'identity', 'exact', 'straight', 'none'"
        )
    if images.ndim != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; allowed: (N, C, H, W)")
    n, c, h, w = images.shape
    wanted = (n, c, h, w) if channels == "concat" else (n, 1, h, w)
    if tuple(mask.shape) != wanted:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; allowed for channels={channels!r}: {wanted}"
        )


class _Identity(torch.autograd.Function):
    """Forward: what was computed. Backward: the gradient passes unchanged (BPDA, Athalye 2018)."""

    @staticmethod
    def forward(ctx: object, images: Tensor, rebuilt: Tensor) -> Tensor:
        return rebuilt.view_as(rebuilt)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
