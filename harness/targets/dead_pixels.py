"""Dead pixels: pixels that change what the classifier sees, whose gradient a backward pass loses.

A clip, a rounding or a threshold has no gradient where it cuts, and an attack through it is blind there,
though few of its gradients need be zero: through a matrix estimation every pixel lends a little to all
others. So each pixel is asked about its own place in what the classifier sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.random import Draws
from harness.targets.defended import Defended
from harness.types import Backward

IMAGES = 4
"""Images that are probed: the first of the test set, however they are batched."""
PIXELS = 12
"""Pixels of each that are moved, one at a time."""
LARGEST_STEP = 0.5
"""A pixel moves by epsilon, but by no more than this: from black or white to the middle."""
_HEARD = 0.1
"""A pixel is heard where its own place changes by this share of its step or more."""


@torch.no_grad()
def probe(
    defended: Defended, images: Tensor, draws: Draws, backward: Backward, step: float
) -> tuple[Tensor, Tensor]:
    """Count pixels that the transformation hears, and those of them that the backward pass does not.

    Each of `PIXELS` entries of an image, drawn at random, moves by `step` towards the middle of the box,
    alone and under the image's own draws. It is heard where its own place in the output changes (the same
    entry; in an encoding with other channels all of them there), so a pixel that a mask drops is not. It
    is dead where that place has exactly no gradient by it along `backward`.

    Args:
        images: (N, C, H, W) in [0, 1].
        step: in pixel values.

    Returns:
        (N,) int64 pixels that are heard, and of these (N,) int64 that are dead; none are heard where the
        transformation changes height or width.
    """
    zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    if not images.numel() or step <= 0:
        return zeros, zeros.clone()
    size = images[0].numel()
    each = min(PIXELS, size)
    entries = draws.uniform(size, lane="probed pixels").argsort(dim=1)[:, :each].flatten()
    rows = torch.arange(len(images), device=images.device).repeat_interleave(each)
    place = functional.one_hot(entries, size).reshape(-1, *images.shape[1:]).bool()
    here, originals = draws[rows], images.detach()[rows]
    moved = torch.where(place, originals + step * torch.where(originals < 0.5, 1, -1), originals)

    leaf = originals.clone().requires_grad_(True)
    with torch.enable_grad():
        seen = defended.transform(leaf, here, backward=backward)
    if seen.shape[2:] != images.shape[2:]:
        return zeros, zeros.clone()
    own = place if seen.shape == place.shape else place.any(dim=1, keepdim=True).expand_as(seen)
    change = (defended.transform(moved, here) - seen.detach()).abs()
    heard = (change * own).flatten(1).amax(dim=1) >= _HEARD * step
    slope = None
    if seen.requires_grad:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(seen[own].sum(), leaf, allow_unused=True)
    dead = heard if slope is None else heard & (slope[place] == 0)
    return zeros.index_add(0, rows, heard.to(zeros)), zeros.index_add(0, rows, dead.to(zeros))
