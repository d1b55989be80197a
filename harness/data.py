"""Datasets by name: one split in memory, checked once, with stable sample ids and a digest.

Images are (N, C, H, W), uint8 (read as value / 255) or float32 in [0, 1]; nothing is normalised.
A registered dataset is a function `(split, folder, **parameters) -> Samples`; `load` does the rest,
so every dataset, a guest's too, passes the same checks. One that takes long has a `reporter` too.

A sample's id never changes with order or subset: its position in the official file (plus
`TEST_OFFSET` in a test file), or a hash of its file name where a dataset is a folder of files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import inspect
import os
import socket
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import platformdirs
import torch
from torch import Tensor

from harness.progress import Reporter, Silent
from harness.random import Role, permutation
from harness.registry import datasets
from harness.types import Dataset, HarnessError

Split = Literal["train", "test"]
TEST_OFFSET = 10_000_000
"""What is added to the positions of a test file, so that no id stands for two samples."""
_CHUNK = 2048
_TIMEOUT = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """What a dataset's factory returns: arrays or tensors, not yet checked.

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
    """The split `train` or `test` of the dataset `name`, checked.

    Files are looked for in `data_dir`, else in HARNESS_DATA, else in a cache folder of this user;
    what is missing and has a public source is downloaded to that folder.

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
            f"dataset {name} returned {type(samples).__name__}: it must return harness.data.Samples"
        )
    return assemble(name, split, samples)


def folder(data_dir: Path | None = None) -> Path:
    """Where data lies: the argument, else HARNESS_DATA, else `cache()`. It need not exist."""
    given = data_dir or os.environ.get("HARNESS_DATA")
    return Path(given).expanduser() if given else cache()


def cache() -> Path:
    """This user's folder for downloads and decoded copies. It need not exist."""
    return Path(platformdirs.user_cache_dir("harness-data", appauthor=False))


def assemble(name: str, split: str, samples: Samples) -> Dataset:
    """A checked Dataset with its digest.

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


def check(dataset: Dataset) -> None:
    """Whether these images, labels and ids can be trusted with an experiment.

    Raises:
        HarnessError: wrong shape, dtype or range, values that are not finite, labels without a
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
            f"{what}: {len(twice)} ids occur more than once ({_some(twice)}): "
            "give every sample its own id"
        )


def check_pixels(images: Tensor, what: str) -> None:
    """Whether images are finite and in [0, 1] (or uint8).

    Raises:
        HarnessError: they are not, with what they look like.
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
            f"{what}: its classes are {_some(classes) or 'none'}: there must be two or more, "
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
            f"{what}: no image belongs to {_some([classes[label] for label in empty])} "
            f"({len(empty)} of {len(classes)} classes are empty): "
            "add images or remove these classes"
        )


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")


@dataclasses.dataclass(frozen=True)
class Summary:
    """One split in figures; `low` and `high` are on the scale of [0, 1].

    `repeated` counts its images whose pixels occur in the other split too.
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
    """Both splits of a dataset in figures: what `harness data check NAME` prints.

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
            f"{name}: {len(both)} ids are in both splits ({_some(both)}): "
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
    """A hash of each image's pixels."""
    return [
        hashlib.blake2b(image.numpy().data, digest_size=16).digest()
        for image in dataset.images.cpu()
    ]


def span(images: Tensor) -> tuple[float, float]:
    """The least and the greatest pixel value, on the scale of [0, 1]."""
    low, high = torch.aminmax(images)
    scale = 1.0 if images.is_floating_point() else 255.0
    return float(low) / scale, float(high) / scale


def digest(images: Tensor, labels: Tensor, ids: Tensor) -> str:
    """SHA-256 of shape, dtype, pixels, labels and ids, in that order, little-endian."""
    total = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}\n".encode())
    for values in (images, labels, ids):
        for start in range(0, len(values), _CHUNK):
            array = values[start : start + _CHUNK].contiguous().cpu().numpy()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            total.update(little.data.cast("B") if little.size else b"")
    return total.hexdigest()


def name_ids(names: Sequence[str]) -> Tensor:
    """(N,) int64 in [0, 2**53): an id for each relative file name, by SHA-256.

    It stays when other files come or go. Sorted by it, files lie in an order that is fixed, mixes
    the classes, and does not depend on the file system. 53 bits: exact as a number in JSON.
    """
    values = [
        int.from_bytes(
            hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()[:8], "big"
        )
        for name in names
    ]
    return torch.tensor([value >> 11 for value in values], dtype=torch.int64)


def stratified(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Positions (train, test) of a fixed split, each in ascending order.

    `round(share * n)` samples of every class, one at least, go to the test split, chosen by a
    pseudo-random permutation that depends on the class and its size alone.
    """
    test = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        order = permutation(0, len(members), role=Role.SHUFFLE, step=label)
        test.append(members[order[: max(1, round(share * len(members)))]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(test)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def obtain(
    name: str,
    where: Path,
    files: Sequence[str],
    fetch: Callable[[Path], object] | None = None,
) -> None:
    """Makes sure that `files` (relative paths) are in `where`, downloading those that are missing.

    `fetch(root)` downloads into an empty folder; only then are complete files moved into place, so
    that an interrupted download leaves nothing half-written. Without `fetch` there is no download.

    Raises:
        HarnessError: they are missing and cannot be downloaded; it names the ways to get them.
    """
    missing = [file for file in files if not (where / file).exists()]
    if not missing:
        return
    put = (
        "put the files there, or name the folder that has them "
        "(--data-dir FOLDER or HARNESS_DATA=FOLDER)"
    )
    lacks = f"{name}: {where} lacks {_some(missing)}"
    if fetch is None:
        raise HarnessError(f"{lacks}; there is no download for it.\nUnpack it and {put}.")
    try:
        if not where.is_dir() and where != cache():
            raise FileNotFoundError("there is no such folder")
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=where) as temporary, _patience():
            fetch(Path(temporary))
            for file in missing:
                (where / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary) / file, where / file)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error).strip() or type(error).__name__
        raise HarnessError(
            f"{lacks}, and nothing was downloaded ({textwrap.shorten(reason, 160)}).\n"
            f"Either {put}; or run again with a network, and torchvision downloads them."
        ) from error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """A silent server ends a download after 30 seconds instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
