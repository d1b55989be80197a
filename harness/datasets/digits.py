"""Handwritten digits that come with scikit-learn (UCI, Alpaydin and Kaynak 1998): no download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from harness.datasets.data import Samples, Split
from harness.datasets.sources import stratified
from harness.registry import datasets
from harness.types import HarnessError

_SIDE = 28


@datasets.register("digits")
def digits(split: Split, folder: Path) -> Samples:
    """Load 1,797 real handwritten digits of 8 x 8, resized to 28 x 28; a fifth is the test split.

    Each class gives a fifth to it. The id is the position in scikit-learn's file. Pixels have 8 bits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise HarnessError(
            f"digits come with scikit-learn, which does not load ({error}): "
            "pip install scikit-learn"
        ) from error
    bunch = load_digits()
    images = enlarge(torch.from_numpy(bunch.images).long())
    labels = torch.from_numpy(bunch.target).long()
    train, test = stratified(labels, 0.2)
    chosen = train if split == "train" else test
    return Samples(
        images=images[chosen],
        labels=labels[chosen],
        classes=[str(digit) for digit in range(10)],
        ids=chosen,
        note="scikit-learn's digits, 8 x 8 resized to 28 x 28",
    )


def enlarge(images: Tensor) -> Tensor:
    """Enlarge (N, 8, 8) int64 from 0 to 16 to (N, 1, 28, 28) uint8 from 0 to 255, bilinearly.

    The grid is that of torch's `interpolate(align_corners=False)`. Output pixel i lies at
    (i + 1/2) * 8/28 - 1/2 = (4i - 5) / 14, so all weights are multiples of 1/14 and the whole is
    exact in integers: the same digest on every machine. Halves round up.
    """
    side = images.shape[-1]
    place = (4 * torch.arange(_SIDE) - 5).clamp(0, 14 * (side - 1))
    low = place // 14
    rest = place - 14 * low
    weights = torch.zeros(_SIDE, side, dtype=torch.int64)
    weights[torch.arange(_SIDE), low] += 14 - rest
    weights[torch.arange(_SIDE), (low + 1).clamp(max=side - 1)] += rest
    scaled = torch.einsum("ia,nab,jb->nij", weights, images, weights) * 255
    unit = 16 * 14 * 14
    return ((2 * scaled + unit) // (2 * unit)).to(torch.uint8)[:, None]
