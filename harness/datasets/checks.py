"""Check the shape, range, labels and ids of a dataset before an experiment is built on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.types import Dataset, HarnessError

_CHUNK = 2048


def check(dataset: Dataset) -> None:
    """Check that a dataset's images, labels and ids fit for an experiment.

    Raises:
        HarnessError: a wrong shape, dtype or range, values that are not finite, labels without a
            class, classes without an image, ids that occur twice, or lengths that differ.
    """
    what = f"{dataset.name} ({dataset.split})"
    images, labels, ids, classes = dataset.images, dataset.labels, dataset.ids, dataset.classes
    if images.ndim != 4 or 0 in images.shape:
        raise HarnessError(
            f"{what}: images have the shape {tuple(images.shape)}: "
            "it must be (N, C, H, W), none of them 0"
        )
    if images.shape[1] > 4 and images.shape[3] <= 4:
        raise HarnessError(
            f"{what}: images have the shape {tuple(images.shape)}, which looks like (N, H, W, C): "
            "move the channels to the second place"
        )
    count = len(images)
    if labels.shape != (count,) or ids.shape != (count,):
        raise HarnessError(
            f"{what}: {count} images, labels of shape {tuple(labels.shape)}, ids of shape "
            f"{tuple(ids.shape)}: every image needs one label and one id"
        )
    check_pixels(images, what)
    _check_labels(labels, classes, what)
    ordered = ids.sort().values
    twice = sorted(set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()))
    if twice:
        raise HarnessError(
            f"{what}: {len(twice)} ids occur more than once ({some(twice)}): "
            "give every sample its own id"
        )


def check_pixels(images: Tensor, what: str) -> None:
    """Check that images are finite and in [0, 1] (or uint8).

    Raises:
        HarnessError: they are not (with a guess at the mistake).
    """
    if images.dtype not in (torch.uint8, torch.float32):
        raise HarnessError(
            f"{what}: images are {images.dtype}: they must be uint8 (0 to 255) or float (0 to 1)"
        )
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        bad = ~torch.isfinite(chunk).flatten(1).all(dim=1)
        if bad.any():
            raise HarnessError(
                f"{what}: image {start + int(bad.nonzero()[0])} has values that are NaN or "
                "infinite: leave it out or mend its source"
            )
    low, high = span(images)
    if low < 0 or high > 1:
        hint = (
            "they look normalised: hand in the plain pixels, normalisation lives inside the model"
            if low < 0
            else "they look like 0 to 255: divide by 255 or store them as uint8"
        )
        raise HarnessError(
            f"{what}: pixels reach from {low:g} to {high:g}, allowed is 0 to 1; {hint}"
        )
    if high <= 1 / 255:
        raise HarnessError(
            f"{what}: the brightest pixel is {high:g} on a scale from 0 to 1, so all images are "
            "black: they may have been divided by 255 once too often (uint8 is read as value / 255)"
        )


def _check_labels(labels: Tensor, classes: Sequence[str], what: str) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise HarnessError(
            f"{what}: its classes are {some(classes) or 'none'}: there must be two or more, "
            "of different names"
        )
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        place = int(outside.nonzero()[0])
        raise HarnessError(
            f"{what}: sample {place} has the label {int(labels[place])}: {len(classes)} classes "
            f"have labels from 0 to {len(classes) - 1}; {int(outside.sum())} samples are outside"
        )
    empty = (torch.bincount(labels, minlength=len(classes)) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise HarnessError(
            f"{what}: no image belongs to {some([classes[label] for label in empty])} "
            f"({len(empty)} of {len(classes)} classes are empty): "
            "add images or remove these classes"
        )


def some(values: Sequence[object]) -> str:
    """Return the first three values as text for a message."""
    return ", ".join(str(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")


def span(images: Tensor) -> tuple[float, float]:
    """Return the smallest and the greatest pixel value, on the scale of [0, 1]."""
    low, high = torch.aminmax(images)
    scale = 1.0 if images.is_floating_point() else 255.0
    return float(low) / scale, float(high) / scale


def digest(images: Tensor, labels: Tensor, ids: Tensor) -> str:
    """Return the SHA-256 of shape, dtype, pixels, labels and ids, in that order, little-endian."""
    total = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}\n".encode())
    for values in (images, labels, ids):
        for start in range(0, len(values), _CHUNK):
            array = values[start : start + _CHUNK].contiguous().cpu().numpy()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            total.update(little.data.cast("B") if little.size else b"")
    return total.hexdigest()
