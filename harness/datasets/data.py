"""Load datasets by name: one split in memory, checked once, with stable sample ids and a digest.

Images are (N, C, H, W), uint8 (read as value / 255) or float32 in [0, 1]; nothing is normalised.
A registered dataset is a function `(split, folder, **parameters) -> Samples`; `load` does the rest,
so every dataset, a guest's too, passes the same checks. A slow one also takes a `reporter`.

A sample's id never changes with order or subset: its position in the official file (plus
`TEST_OFFSET` in a test file), or a hash of its file name where a dataset is a folder of files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import platformdirs
import torch
from torch import Tensor

from harness.datasets.checks import check, digest, some, span
from harness.registry import datasets
from harness.storage.progress import Reporter, Silent
from harness.types import Dataset, HarnessError

Split = Literal["train", "test"]
TEST_OFFSET = 10_000_000
"""The number that is added to positions in a test file, so that no id stands for two samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The return value of a dataset's function: arrays or tensors, not yet checked.

    `images` (N, C, H, W) uint8, or any float in [0, 1]; `labels` (N,) integers, positions in
    `classes`; `ids` (N,) integers, by default the position, plus `TEST_OFFSET` in the test split.
    """

    images: Tensor | np.ndarray[Any, Any]
    labels: Tensor | np.ndarray[Any, Any]
    classes: Sequence[str]
    ids: Tensor | np.ndarray[Any, Any] | None = None
    note: str = ""


def load(
    name: str,
    split: Split,
    *,
    data_dir: Path | None = None,
    reporter: Reporter | None = None,
    **parameters: Any,
) -> Dataset:
    """Return the split `train` or `test` of the dataset `name`, checked.

    Files are looked for in `data_dir`, else in HARNESS_DATA, else in a cache folder of this user.
    Missing files that have a public source are downloaded to that folder.

    Raises:
        HarnessError: no such dataset, split or parameter; files missing; unusable images or labels.
        DamageError: a file is not what it should be.
    """
    if split not in get_args(Split):
        raise HarnessError(
            f"no split is called {split!r}: there are {' and '.join(get_args(Split))}"
        )
    make = datasets.get(name)
    where = folder(data_dir)
    signature = inspect.signature(getattr(make, "make", make))  # of what a Preset wraps
    options = {**getattr(make, "preset", {}), **parameters}
    if "reporter" in signature.parameters:
        options["reporter"] = reporter or Silent()
    try:
        signature.bind(split, where, **options)
    except TypeError as error:
        allowed = [key for key in list(signature.parameters)[2:] if key != "reporter"]
        raise HarnessError(
            f"dataset {name}: {error}. Its parameters are: {', '.join(allowed) or 'none'}"
        ) from None
    samples = make(split, where, **options)
    if not isinstance(samples, Samples):
        raise HarnessError(
            f"dataset {name} returned {type(samples).__name__}: it must return harness.datasets.data.Samples",
            page="datasets",
        )
    return assemble(name, split, samples)


def folder(data_dir: Path | None = None) -> Path:
    """Return the folder of the data: the argument, else HARNESS_DATA, else `cache()`. It need not exist."""
    given = data_dir or os.environ.get("HARNESS_DATA")
    return Path(given).expanduser() if given else cache()


def cache() -> Path:
    """Return this user's folder for downloads and decoded copies. It need not exist."""
    return Path(platformdirs.user_cache_dir("harness-data", appauthor=False))


def assemble(name: str, split: str, samples: Samples) -> Dataset:
    """Return a checked Dataset with its digest.

    Raises:
        HarnessError: see `check`.
    """
    images, labels = _tensor(samples.images), _tensor(samples.labels)
    if samples.ids is None:
        ids = torch.arange(len(labels)) + (TEST_OFFSET if split == "test" else 0)
    else:
        ids = _tensor(samples.ids)
    if images.dtype in (torch.float64, torch.float16, torch.bfloat16):
        images = images.float()
    draft = Dataset(
        name=name,
        split=split,
        images=images.contiguous(),
        labels=_integers(labels, f"{name} ({split}): labels"),
        ids=_integers(ids, f"{name} ({split}): ids"),
        classes=tuple(str(label) for label in samples.classes),
        digest="",
        note=samples.note,
    )
    check(draft)
    return dataclasses.replace(draft, digest=digest(draft.images, draft.labels, draft.ids))


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.ascontiguousarray(values)
    if array.dtype.kind in "OUSV":
        raise HarnessError(f"an array holds {array.dtype}: images, labels and ids are numbers")
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(array)


def _integers(values: Tensor, what: str) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise HarnessError(f"{what} are {values.dtype}: they must be integers")
    return values.to(torch.int64)


@dataclasses.dataclass(frozen=True)
class Summary:
    """One split in numbers. `low` and `high` are on the scale of [0, 1].

    `repeated` counts the images whose pixels occur in the other split too.
    """

    name: str
    split: str
    count: int
    per_class: dict[str, int]
    shape: tuple[int, int, int]
    dtype: str
    low: float
    high: float
    repeated: int
    digest: str
    note: str


def summary(
    name: str,
    data_dir: Path | None = None,
    *,
    reporter: Reporter | None = None,
    **parameters: Any,
) -> list[Summary]:
    """Return both splits of a dataset in numbers, as `harness data check NAME` prints them.

    Raises:
        HarnessError, DamageError: as `load`; also where the splits differ in shape or classes, or
            share an id.
    """
    loaded = [
        load(name, split, data_dir=data_dir, reporter=reporter, **parameters)
        for split in get_args(Split)
    ]
    train, test = loaded
    if train.shape != test.shape or train.images.dtype != test.images.dtype:
        raise HarnessError(
            f"{name}: training images are {train.shape} {train.images.dtype}, test images "
            f"{test.shape} {test.images.dtype}: they must be alike"
        )
    if train.classes != test.classes:
        raise HarnessError(f"{name}: the splits have different classes: they must have the same")
    both = sorted(set(train.ids.tolist()) & set(test.ids.tolist()))
    if both:
        raise HarnessError(
            f"{name}: {len(both)} ids are in both splits ({some(both)}): "
            "give every sample its own id"
        )
    prints = [_fingerprints(dataset) for dataset in loaded]
    summaries = []
    for dataset, own, others in zip(loaded, prints, reversed(prints), strict=True):
        low, high = span(dataset.images)
        counts = torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
        there = set(others)
        summaries.append(
            Summary(
                name=name,
                split=dataset.split,
                count=len(dataset),
                per_class=dict(zip(dataset.classes, counts, strict=True)),
                shape=dataset.shape,
                dtype=str(dataset.images.dtype).removeprefix("torch."),
                low=low,
                high=high,
                repeated=sum(print_ in there for print_ in own),
                digest=dataset.digest,
                note=dataset.note,
            )
        )
    return summaries


def _fingerprints(dataset: Dataset) -> list[bytes]:
    """Return a hash of each image's pixels."""
    return [
        hashlib.blake2b(image.numpy().data, digest_size=16).digest()
        for image in dataset.images.cpu()
    ]
