"""Singular values through the Gram matrix of the short side: H x W with H < W needs only H x H."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import native


class Spectrum(NamedTuple):
    """Singular value decomposition Z = left diag(singular) right, in ascending order.

    left: (N, H, H) orthogonal; singular: (N, H); right: (N, H, W), orthonormal rows, but zero rows
    where the singular value is too small for the Gram matrix to tell its direction.
    """

    left: Tensor
    singular: Tensor
    right: Tensor


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues (N, H) and eigenvectors (N, H, H) as columns, without gradients."""
    found = native.eigh(symmetric)
    if found is None:
        found = tuple(torch.linalg.eigh(symmetric))
    return found


def decompose(matrix: Tensor) -> Spectrum:
    """Return the spectrum of (N, H, W), H <= W, in float64: squaring costs half of the 16 digits."""
    exact = matrix.double()
    squares, left = eigh(exact @ exact.mT)
    singular = squares.clamp_min(0).sqrt()
    told = singular > 1e-7 * singular[:, -1:]
    scale = torch.where(told, 1 / singular.clamp_min(torch.finfo(torch.float64).tiny), 0)
    return Spectrum(left, singular * told, scale[:, :, None] * (left.mT @ exact))


def shrink(matrix: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce the singular values of (N, H, W), H <= W, by (N,); return the matrix and its nuclear norm.

    Cai, Candes and Shen (2010), Theorem 2.1. A singular value below the threshold only has to be
    known to be below it, so squaring costs no accuracy.
    """
    squares, left = eigh(matrix @ matrix.mT)
    singular = squares.clamp_min(0).sqrt()
    kept = (singular - threshold[:, None]).clamp_min(0)
    scale = kept / singular.clamp_min(torch.finfo(matrix.dtype).tiny)
    return (left * scale[:, None, :]) @ (left.mT @ matrix), kept.sum(-1)


def largest(matrix: Tensor) -> Tensor:
    """Return the largest singular value, (N,), of (N, H, W) with H <= W; the gradient is finite at zero."""
    square = matrix @ matrix.mT
    found = native.eigh(square)
    squares: Tensor = torch.linalg.eigvalsh(square) if found is None else found[0]
    return squares[:, -1].clamp_min(torch.finfo(matrix.dtype).tiny).sqrt()


class Derivative(NamedTuple):
    """The derivative of Z -> left diag(f(singular)) right, as a symmetric linear map.

    ratio: (N, H) f_i / s_i; even and odd: (N, H, H), what multiplies the symmetric and the
    antisymmetric part of left^T D right^T: (f_i - f_j) / (s_i - s_j) and (f_i + f_j) / (s_i + s_j).
    """

    spectrum: Spectrum
    ratio: Tensor
    even: Tensor
    odd: Tensor

    def __call__(self, along: Tensor) -> Tensor:
        """Return the derivative along (N, H, W) float64, of the same shape."""
        left, _, right = self.spectrum
        rows = left.mT @ along
        inner = rows @ right.mT
        ratio = self.ratio[:, :, None]
        core = (self.even + self.odd) / 2 * inner + (self.even - self.odd) / 2 * inner.mT
        # Outside the span of `right` the map is f_i / s_i, so that part needs no directions.
        return left @ ((core - ratio * inner) @ right + ratio * rows)


def shrink_derivative(spectrum: Spectrum, threshold: Tensor) -> Derivative:
    """Return the derivative of thresholding by (N,); its divided differences lie in [0, 1]."""
    s = spectrum.singular
    f = (s - threshold[:, None]).clamp_min(0)
    kept = s > threshold[:, None]
    tiny = torch.finfo(s.dtype).tiny
    difference = (s[:, :, None] - s[:, None, :]).abs()
    even = (f[:, :, None] - f[:, None, :]).abs() / difference.clamp_min(tiny)
    even = torch.where(kept[:, :, None] & kept[:, None, :], 1, even)
    odd = (f[:, :, None] + f[:, None, :]) / (s[:, :, None] + s[:, None, :]).clamp_min(tiny)
    return Derivative(spectrum, f / s.clamp_min(tiny), even, odd)


def cut_derivative(spectrum: Spectrum, kept: Tensor) -> Derivative:
    """Return the derivative of keeping the singular values marked in (N, H), 0 or 1.

    Where a kept and a dropped value meet the map is not differentiable; the divided difference,
    s / (s_i - s_j), is then bounded by `_NEAR` instead of infinite.
    """
    s = spectrum.singular
    f = s * kept
    both = kept[:, :, None] * kept[:, None, :]
    one = kept[:, :, None] + kept[:, None, :] - 2 * both
    difference = (s[:, :, None] - s[:, None, :]).abs()
    near = (_NEAR * s[:, -1:, None]).clamp_min(1e-100)
    larger = torch.maximum(f[:, :, None], f[:, None, :])
    even = both + one * larger * difference / (difference.square() + near.square())
    total = (s[:, :, None] + s[:, None, :]).clamp_min(torch.finfo(s.dtype).tiny)
    odd = both + one * larger / total
    return Derivative(spectrum, kept, even, odd)


_NEAR = 1e-6  # of the largest singular value
