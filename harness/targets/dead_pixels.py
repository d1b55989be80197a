"""Find dead pixels: they change the classifier's input, but the backward pass gives them no gradient.

A clip, a rounding or a threshold has no gradient where it cuts, so an attack through it is blind there. Few
whole gradients need be zero: through a matrix estimation every pixel contributes a little to all others. So
each pixel is tested at its own place in the classifier's input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.random import Draws
from harness.targets.defended import Defended
from harness.types import Backward

IMAGES = 4
"""The number of images that are probed: the first of the test set, however they are batched."""
PIXELS = 12
"""The number of pixels of each image that are moved, one at a time."""
LARGEST_STEP = 0.5
"""The longest move of a pixel, which else is epsilon: from black or white to the middle."""
_HEARD = 0.1
"""The least change of a pixel's own place, as a share of its step, with which the pixel is heard."""


@torch.no_grad()
def probe(
    defended: Defended, images: Tensor, draws: Draws, backward: Backward, step: float
) -> tuple[Tensor, Tensor]:
    """Count the pixels that change the transformation's output, and those that get no gradient though.

    `PIXELS` entries of each image, drawn at random, are moved by `step` towards the middle of the box, one
    at a time and under the image's own draws. A pixel is heard if its own place in the output changes: the
    same entry or, in an encoding with other channels, all channels there. A pixel that a mask drops is not
    heard. A pixel is dead if the gradient of that place by the pixel, along `backward`, is exactly zero.

    Args:
        images: (N, C, H, W) in [0, 1].
        step: the size of the move, in pixel values.

    Returns:
        The (N,) int64 number of pixels that are heard, and the (N,) int64 number of dead ones among them.
        Both are 0 where the transformation changes height or width.
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
